"""The pages are whole: links lead somewhere, and every page can be found."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob('*.md')), *sorted(ROOT.glob('docs/*.md'))]

_CODE = re.compile(r'^```.*?^```$|`[^`\n]*`', re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'\]\(([^)\s]+)\)')


def _name(path):
  return path.relative_to(ROOT).as_posix()


def _anchors(path):
  """The anchors that a browser of repositories gives to headings."""
  text = re.sub(r'^```.*?^```$', '', path.read_text('utf-8'), flags=re.M | re.S)
  headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


@pytest.mark.parametrize('page', PAGES, ids=_name)
def test_links_lead_somewhere(page):
  prose = _CODE.sub(
    lambda code: '`' * code[0].startswith('`'), page.read_text()
  )
  for link in _LINK.findall(prose):
    if re.match(r'https?://', link):
      continue
    name, _, anchor = link.partition('#')
    target = page.parent / name if name else page
    assert target.exists(), link
    if anchor:
      assert anchor in _anchors(target), link


def test_the_readme_is_short():
  assert len((ROOT / 'README.md').read_text('utf-8').split()) <= 1000


@pytest.mark.parametrize('index', ['README.md', 'docs/index.md'])
def test_every_page_can_be_found(index):
  text = (ROOT / index).read_text('utf-8')
  included = {'changelog', 'contributing', 'api'}  # Of the built pages only.
  for path in ROOT.glob('docs/*.md'):
    if index == 'README.md' and path.stem not in {*included, 'index'}:
      assert f'](docs/{path.name})' in text
    if index == 'docs/index.md' and path.stem != 'index':
      assert re.search(rf'^{path.stem}$', text, re.MULTILINE)


def test_the_changelog_names_the_version():
  version = re.search(r"version='([^']+)'", (ROOT / 'setup.py').read_text())[1]
  changes = (ROOT / 'CHANGELOG.md').read_text('utf-8')
  assert re.search(r'^## (\S+)', changes, re.MULTILINE)[1] == version

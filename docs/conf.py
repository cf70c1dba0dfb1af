"""How Sphinx builds these pages: `launch/build_docs.sh`.

The pages are Markdown that also reads well in a repository browser. The API
reference comes from the docstrings, one page per module.
"""

import pathlib
import re

_ROOT = pathlib.Path(__file__).resolve().parent.parent

project = 'perlhf_jax'
copyright = 'the authors of perlhf_jax'
version = release = re.search(
  r"version='([^']+)'", (_ROOT / 'setup.py').read_text('utf-8')
)[1]

extensions = [
  'myst_parser',
  'sphinx.ext.apidoc',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
myst_heading_anchors = 4

html_theme = 'furo'
html_title = f'perlhf_jax {version}'
# Pages need no network: no fonts, scripts or badges from elsewhere.
html_show_sphinx = False

apidoc_modules = [
  {
    'path': str(_ROOT / 'perlhf_jax'),
    'destination': 'api',
    # It needs T5X, which is not on PyPI.
    'exclude_patterns': [str(_ROOT / 'perlhf_jax/interop/t5x_models.py')],
    'separate_modules': True,
    'module_first': True,
    'automodule_options': {'members', 'show-inheritance'},
  }
]
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
autodoc_typehints_format = 'short'
# Docstrings have names and shapes in single backticks.
default_role = 'literal'
python_use_unqualified_type_names = True

# Pages of this site that are files of the top folder.
_INCLUDED = {
  'CONTRIBUTING.md': 'contributing.md',
  'CHANGELOG.md': 'changelog.md',
}
# A link to another file of the repository.
_LINK = re.compile(r'\[([^\]]+)\]\(\.\./([\w./]+)(#[\w-]+)?\)')
_UNDOCUMENTED = ('perlhf_jax/interop/t5x_models.py',)
# What reStructuredText would take for markup, outside of backticks.
_MARKUP = re.compile(r'(`[^`]*`)|([*|]|(?<=\w)_(?!\w))')


def _on_this_site(match: re.Match[str]) -> str:
  """Gives what stands here for a link to a file of the repository."""
  text, path, anchor = match.groups()
  if path in _INCLUDED:
    return f'[{text}]({_INCLUDED[path]}{anchor or ""})'
  is_module = path.startswith('perlhf_jax/') and path.endswith('.py')
  if is_module and path not in _UNDOCUMENTED:
    module = path.removesuffix('.py').replace('/', '.')
    return f'{{py:mod}}`{text} <{module}>`'
  return f'`{path}`' if path.endswith(text) else f'{text} (`{path}`)'


def _read_page(app, docname, source):
  """Points links of the repository at pages of this site."""
  source[0] = _LINK.sub(_on_this_site, source[0])


def _read_docstring(app, what, name, obj, options, lines):
  """Keeps mathematics of a docstring, such as |ratio - 1|, as it is."""
  text = '\n'.join(lines)
  lines[:] = _MARKUP.sub(lambda match: match[1] or '\\' + match[2], text).split(
    '\n'
  )


def setup(app):
  """Connects the hooks."""
  app.connect('source-read', _read_page)
  # Before napoleon, which writes markup of its own.
  app.connect('autodoc-process-docstring', _read_docstring, priority=100)

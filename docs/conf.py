"""How Sphinx builds these pages: `launch/build_docs.sh`.

The pages are Markdown that also reads well in a repository browser. The API
reference comes from the docstrings, one page per module.
"""

import pathlib
import re

from pygments.lexers import PythonLexer

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
# The list of top packages, of which there is one.
exclude_patterns = ['api/modules.rst']
# Fields are described in the docstring of their class.
napoleon_use_ivar = True
autodoc_member_order = 'bysource'
autodoc_preserve_defaults = True
autodoc_typehints_format = 'short'
python_use_unqualified_type_names = True

# Pages of this site that are files of the top folder.
_INCLUDED = {
  'CONTRIBUTING.md': 'contributing.md',
  'CHANGELOG.md': 'changelog.md',
}
# A link to another file of the repository.
_LINK = re.compile(r'\[([^\]]+)\]\(\.\./([\w./]+)(#[\w-]+)?\)')
_UNDOCUMENTED = ('perlhf_jax/interop/t5x_models.py',)
# Code in a docstring, or what reStructuredText would take for markup.
_CODE_OR_MARKUP = re.compile(r'`([^`]+)`(\w?)|([*|]|(?<=\w)_(?!\w))')
# An indented example, behind a paragraph that ends with a colon.
_EXAMPLE = re.compile(r'(?<=:)\n\n(?:  .*\n|\n)+')


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


def _as_markup(match: re.Match[str]) -> str:
  code, suffix, markup = match.groups()
  if markup:
    return '\\' + markup
  code = ' '.join(code.split())
  return f'``{code}``' + (f'\\ {suffix}' if suffix else '')


def _read_docstring(app, what, name, obj, options, lines):
  """Makes reStructuredText of a docstring, which is plain text with `code`."""
  text = '\n'.join(lines) + '\n'
  written, end = [], 0
  for example in _EXAMPLE.finditer(text):
    prose = text[end : example.start()]
    written += [_CODE_OR_MARKUP.sub(_as_markup, prose), ':', example[0]]
    end = example.end()
  written.append(_CODE_OR_MARKUP.sub(_as_markup, text[end:]))
  lines[:] = ''.join(written).split('\n')


def setup(app):
  """Connects the hooks, and gives gin files the colours of Python."""
  app.add_lexer('gin', PythonLexer)
  app.connect('source-read', _read_page)
  # Before napoleon, which writes markup of its own.
  app.connect('autodoc-process-docstring', _read_docstring, priority=100)

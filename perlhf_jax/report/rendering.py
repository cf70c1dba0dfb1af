"""Makes HTML of a page: one file, without scripts and without links."""

from etils import epy

from perlhf_jax.report import page as page_lib
from perlhf_jax.report import values

# An extra, which only this command needs.
with epy.lazy_imports():
  import jinja2
  import markupsafe

# No text of a page is longer, whatever a file holds.
_MAX_TEXT = 250_000


def to_html(page: page_lib.Page) -> str:
  """Returns a page as an HTML document.

  The templates escape every text; plots are SVG of our own making.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('perlhf_jax.report'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_bounded,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template('page.html').render(page=page)


def _bounded(value):
  """Shortens and cleans what a template prints, except for markup."""
  if isinstance(value, str) and not isinstance(value, markupsafe.Markup):
    return values.shortened(value, _MAX_TEXT)
  return value

"""Draws plots as SVG to be put into a page."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import io
import math
import re
from typing import Any, Literal
import warnings
from xml.etree import ElementTree

from etils import epy

from perlhf_jax.report import page
from perlhf_jax.report import values

# An extra, which only this command needs.
with epy.lazy_imports():
  import matplotlib
  from matplotlib import figure as mpl_figure
  from matplotlib import ticker

# Distinguishable by people who see colours differently (Okabe and Ito).
_COLORS = '#0072b2', '#d55e00', '#007a5a', '#a8437f', '#8a6a00', '#3b3b3b'
_INK, _FAINT = '#20262d', '#d5dbe1'
# A phone shows it at about its own size, so that its text can be read.
_WIDTH, _HEIGHT = 4.2, 2.7
_ROW_HEIGHT = 0.32
_SVG = 'http://www.w3.org/2000/svg'
_LINK = '{http://www.w3.org/1999/xlink}href'
_LABEL = 40
_MAX_TICKS = 5
_STYLE = {
  'font.family': ['sans-serif'],
  'font.sans-serif': ['DejaVu Sans'],
  'font.size': 8.5,
  'text.color': _INK,
  'axes.edgecolor': '#8a949e',
  'axes.labelcolor': _INK,
  'axes.grid': True,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'grid.color': _FAINT,
  'grid.linewidth': 0.6,
  'xtick.color': _INK,
  'ytick.color': _INK,
  'axes.axisbelow': True,
  # Names in files are no formulas.
  'text.parse_math': False,
  'svg.fonttype': 'none',
  'svg.hashsalt': 'perlhf',
}
Look = Literal['thin', 'marked', 'points', 'dashed']
_LOOKS: Mapping[Look, Mapping[str, Any]] = {
  'thin': {'linewidth': 0.9, 'alpha': 0.75},
  'marked': {'linewidth': 1.4, 'marker': 'o', 'markersize': 3.5},
  'points': {'linestyle': '', 'marker': '.', 'markersize': 4, 'alpha': 0.6},
  'dashed': {'linewidth': 0.9, 'linestyle': '--'},
}


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of a plot.

  Attributes:
    x: numbers.
    y: numbers.
    label: name in the legend; none if empty.
    color: number of its colour.
    look: how it is drawn.
    errors: half of the length of each point's bar; NaN for no bar.
  """

  x: Sequence[float]
  y: Sequence[float]
  label: str = ''
  color: int = 0
  look: Look = 'marked'
  errors: Sequence[float] | None = None


def with_bars(
  columns: Sequence[Sequence[float | None]], label: str, color: int
) -> Series | None:
  """Returns points with 95% intervals; None without any point.

  Args:
    columns: numbers of x, of y, and standard errors of y. A standard error of 0
      is of outcomes that happen to agree, and gives no bar; nor does None.
    label: name in the legend; none if empty.
    color: number of its colour.
  """
  rows = [
    (x, y, 1.96 * error if error is not None and error > 0 else math.nan)
    for x, y, error in zip(*columns, strict=False)
    if x is not None and y is not None
  ]
  if not rows:
    return None
  x, y, errors = (list(column) for column in zip(*rows, strict=True))
  return Series(x, y, label, color, errors=errors)


@dataclasses.dataclass(frozen=True)
class Interval:
  """A row of `intervals`.

  Attributes:
    label: name at its left.
    center: the dot.
    low: lower end of the bar; None for a dot alone.
    high: upper end.
    points: what the dot summarises, drawn small.
  """

  label: str
  center: float
  low: float | None = None
  high: float | None = None
  points: Sequence[float] = ()


def chart(
  title: str,
  series: Sequence[Series],
  *,
  x_label: str,
  y_label: str,
  caption: str = '',
  log_x: bool = False,
) -> page.Figure:
  """Draws series over two axes.

  Args:
    title: title of the figure.
    series: what to draw, each with at least one point.
    x_label: name of the horizontal axis.
    y_label: name of the vertical axis.
    caption: text below.
    log_x: whether the horizontal axis is logarithmic; then x is above 0.
  """
  with matplotlib.rc_context(_STYLE):
    figure = mpl_figure.Figure((_WIDTH, _HEIGHT), layout='constrained')
    axes = figure.subplots()
    if log_x:
      axes.set_xscale('log')
    for each in series:
      style = {**_LOOKS[each.look], 'color': _color(each.color)}
      if each.label:
        style['label'] = values.shortened(each.label, _LABEL)
      if each.errors is None:
        axes.plot(each.x, each.y, **style)
      else:
        bars = {'capsize': 2.5, 'elinewidth': 0.9}
        axes.errorbar(each.x, each.y, each.errors, **style, **bars)
    axes.set(xlabel=x_label, ylabel=y_label)
    if log_x:
      _tick_points(axes, series)
    else:
      axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    if any(each.label for each in series):
      figure.legend(
        loc='outside upper left', ncols=3, frameon=False, columnspacing=1.2
      )
    return page.Figure(title, _svg(figure, title), caption)


def intervals(
  title: str,
  rows: Sequence[Interval],
  *,
  x_label: str,
  caption: str = '',
  zero: float | None = None,
) -> page.Figure:
  """Draws dots with bars, a row each, the first on top.

  Args:
    title: title of the figure.
    rows: at least one.
    x_label: name of the axis.
    caption: text below.
    zero: where to draw a vertical line.
  """
  with matplotlib.rc_context({**_STYLE, 'axes.grid.axis': 'x'}):
    height = 0.8 + _ROW_HEIGHT * len(rows)
    figure = mpl_figure.Figure((_WIDTH, height), layout='constrained')
    axes = figure.subplots()
    if zero is not None:
      axes.axvline(zero, color='#8a949e', linewidth=1)
    for place, row in enumerate(rows):
      if row.points:
        at = [place] * len(row.points)
        axes.plot(row.points, at, '|', color=_color(1), markersize=9)
      if row.low is not None and row.high is not None:
        axes.plot(
          (row.low, row.high), (place, place), color=_color(0), linewidth=2
        )
      axes.plot([row.center], [place], 'o', color=_color(0), markersize=5.5)
    names = [values.shortened(row.label, _LABEL) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    return page.Figure(title, _svg(figure, title), caption)


def _tick_points(axes: Any, series: Sequence[Series]) -> None:
  """Labels points of a logarithmic axis, where few lie at powers of ten."""
  at = sorted({x for each in series for x in each.x})
  at = at[:: -(-len(at) // _MAX_TICKS)]
  axes.set_xticks(at, [f'{x:.2g}' for x in at])
  axes.xaxis.set_minor_locator(ticker.NullLocator())


def _color(index: int) -> str:
  return _COLORS[index % len(_COLORS)]


def _svg(figure: Any, title: str) -> str:
  """Returns a figure as an `svg` element that shares a page with others."""
  output = io.BytesIO()
  with warnings.catch_warnings():
    # The font may lack a letter of a name; a browser has it.
    warnings.filterwarnings('ignore', message='Glyph .* missing')
    figure.savefig(
      output, format='svg', transparent=True, metadata={'Date': None}
    )
  content = output.getvalue()
  root = ElementTree.fromstring(content)
  for parent in list(root.iter()):
    for child in list(parent):
      if child.tag in (f'{{{_SVG}}}metadata', f'{{{_SVG}}}style'):
        parent.remove(child)
  _rename(root, f'f{hashlib.sha256(content).hexdigest()[:10]}-')
  for name in 'width', 'height', 'version':
    root.attrib.pop(name, None)
  root.set('role', 'img')
  root.set('aria-label', title)
  name = ElementTree.Element(f'{{{_SVG}}}title')
  name.text = title
  root.insert(0, name)
  ElementTree.register_namespace('', _SVG)
  return ElementTree.tostring(root, encoding='unicode')


def _rename(root: ElementTree.Element, prefix: str) -> None:
  """Gives all ids of an SVG a prefix, because a page holds several."""
  for element in root.iter():
    for key, value in list(element.attrib.items()):
      if key == 'id':
        element.set(key, prefix + value)
      elif key == _LINK:
        # HTML knows no prefixes of namespaces but xlink, which is outdated.
        del element.attrib[key]
        element.set('href', re.sub('^#', f'#{prefix}', value))
      else:
        element.set(key, re.sub(r'url\(#', f'url(#{prefix}', value))

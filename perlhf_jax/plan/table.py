"""The memory per device of programs as a table, line by line."""

from collections.abc import Sequence

from perlhf_jax.plan import compiling
from perlhf_jax.plan import programs as programs_lib

_COLUMNS = (
  *('program', 'tuning', 'batch', 'arguments', 'temporaries', 'peak'),
  *('held', 'limit', 'fits', 'of full', 'compile s'),
)
_WIDTHS = (12, 7, 6, 10, 12, 9, 9, 9, 6, 8, 10)
_LEFT = 2  # Left-aligned columns, which hold words.

_NOTE = """\
MiB per device. peak: of the program, its arguments included. held: weights and
optimizer states that stay on the device meanwhile. peak + held must fit.
of full: peak + held of LoRA, relative to full tuning."""
_DOUBTFUL = """
yes?: arguments and temporaries add up to more than the limit, but the
compiler accepts them, as they do not all live at once. Not tested on a TPU."""


class Table:
  """Formats rows as lines, in the order of the calls."""

  def __init__(self):
    self._rows: list[compiling.Row] = []

  def head(self, setting: programs_lib.Setting) -> str:
    """Returns the text above all rows.

    Args:
      setting: the common setting of all rows.
    """
    lengths = setting.task_feature_lengths
    return (
      f'{type(setting.algorithm).__name__}; prompts of {lengths["inputs"]} '
      f'tokens, {setting.num_samples} response(s) of {lengths["targets"]} '
      f'each; rollouts in {setting.rollout_parts} and updates in '
      f'{setting.accumulation_steps} part(s).\n{_NOTE}'
    )

  def add(self, row: compiling.Row) -> str:
    """Returns the line of a row, below a heading if its slice is new.

    A row of LoRA is compared with full tuning if that row came before.
    """
    lines = []
    if not self._rows or self._rows[-1]['topology'] != row['topology']:
      lines = ['', row['topology'], _line(_COLUMNS)]
    lines.append(_line(_cells(row, self._rows)))
    self._rows.append(row)
    return '\n'.join(lines)

  def foot(self) -> str | None:
    """Returns the text below all rows, if any."""
    return _DOUBTFUL if any(row['doubtful'] for row in self._rows) else None


def needed_bytes(row: compiling.Row) -> int:
  """Returns the memory per device while a program runs."""
  return row['peak_bytes'] + row['held_bytes']


def _cells(row, rows) -> tuple[str, ...]:
  fits = 'yes' if row['fits'] else 'no'
  return (
    row['program'],
    row['tuning'],
    str(row['batch_size']),
    *(
      _mebibytes(row[f'{name}_bytes'])
      for name in ('argument', 'temp', 'peak', 'held', 'limit')
    ),
    fits + '?' * row['doubtful'],
    _ratio(row, rows),
    f'{row["compile_seconds"]:.0f}',
  )


def _ratio(row, rows) -> str:
  if row['tuning'] == 'full':
    return ''
  for other in rows:
    same = all(
      other[key] == row[key] for key in ('topology', 'program', 'batch_size')
    )
    if same and other['tuning'] == 'full':
      return f'{needed_bytes(row) / needed_bytes(other):.0%}'
  return ''


def _mebibytes(count: int | None) -> str:
  return '-' if count is None else f'{count / 2**20:,.0f}'


def _line(cells: Sequence[str]) -> str:
  return ''.join(
    f'{cell:<{width}}' if index < _LEFT else f'{cell:>{width}}'
    for index, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
  ).rstrip()

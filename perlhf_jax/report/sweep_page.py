"""The page of a sweep: what it found, what failed, and its tables."""

from perlhf_jax.report import page
from perlhf_jax.report import sweep_file
from perlhf_jax.report import sweep_tables
from perlhf_jax.report import values


def make(sweep: sweep_file.Sweep, name: str) -> page.Page:
  """Returns the page of a sweep.

  Args:
    sweep: content of sweep.json.
    name: name of its folder.
  """
  arms = sweep.arms[: sweep_tables.MAX_ARMS]
  done = sum(cell.state == 'done' for cell in sweep.cells)
  return page.Page(
    title=values.shortened(sweep.name or name, 100),
    subtitle=(
      f'Sweep of {values.shortened(sweep.command, 40)}: {len(sweep.arms)} '
      f'arms, {len(sweep.seeds)} seeds, {done} of {len(sweep.cells)} runs done'
    ),
    facts=_facts(sweep, arms),
    notes=_notes(sweep),
    sections=[
      page.Section('Comparison', sweep_tables.comparison(sweep, arms)),
      page.Section('Learning rates', sweep_tables.tuning(sweep, arms)),
      page.Section('Size and speed', sweep_tables.sizes(arms)),
      page.Section(
        'Beside the paper', sweep_tables.beside_the_paper(sweep, arms)
      ),
      page.Section('Runs', _cells(sweep)),
    ],
  )


def _facts(sweep, arms) -> list[page.Fact]:
  facts = []
  whole = [arm for arm in arms if arm.mean is not None]
  best = max if sweep.higher_is_better else min
  if whole:
    arm = best(whole, key=lambda each: each.mean)
    facts.append(
      page.Fact(
        f'best {values.label(sweep.metric)}',
        values.shown(sweep.metric, arm.mean),
        values.shortened(arm.name, 60),
      )
    )
  for arm in whole:
    if arm.name == sweep.baseline:
      facts.append(
        page.Fact(
          f'{values.shortened(arm.name, 40)} (baseline)',
          values.shown(sweep.metric, arm.mean),
          values.label(sweep.metric),
        )
      )
  compared = [
    arm for arm in whole if arm.difference and arm.difference.low is not None
  ]
  if compared:
    worse = sum(_is_worse(arm, sweep) for arm in compared)
    facts.append(
      page.Fact(
        'arms worse than the baseline',
        f'{worse} of {len(compared)}',
        f'their {sweep.confidence:.0%} intervals exclude 0',
      )
    )
  seconds = [cell.seconds for cell in sweep.cells if cell.seconds is not None]
  if seconds:
    facts.append(
      page.Fact('time of all runs', f'{sum(seconds) / 60:,.1f} minutes')
    )
  return facts


def _is_worse(arm, sweep) -> bool:
  difference = arm.difference
  if difference.high is None:
    return False
  return difference.high < 0 if sweep.higher_is_better else difference.low > 0


def _notes(sweep) -> list[str]:
  notes = []
  for state, what in (
    ('failed', 'failed'),
    ('waiting', 'have not begun'),
    ('running', 'have not ended'),
  ):
    count = sum(cell.state == state for cell in sweep.cells)
    if count:
      notes.append(f'{count} of {len(sweep.cells)} runs {what}.')
  names = [arm.name for arm in sweep.arms if arm.at_edge]
  if names:
    listed = values.shortened(', '.join(names), 300)
    notes.append(
      f'The best learning rate is at the edge of the grid for: {listed}. A '
      'wider grid may find a better one.'
    )
  if len(sweep.arms) > sweep_tables.MAX_ARMS:
    notes.append(f'Only the first {sweep_tables.MAX_ARMS} arms are shown.')
  return notes


def _cells(sweep) -> list[page.Block]:
  columns = [
    *('arm', 'learning rate', 'seed', 'state'),
    f'tuned: {values.label(sweep.tuned_metric)}',
    f'compared: {values.label(sweep.metric)}',
    *('seconds', 'error', 'folder'),
  ]
  rows = [
    [
      values.shortened(cell.arm, 60),
      f'{cell.learning_rate:g}',
      str(cell.seed),
      cell.state,
      values.shown(sweep.tuned_metric, cell.value),
      values.shown(sweep.metric, cell.compared),
      values.shown('seconds', cell.seconds),
      values.shortened(cell.error or '', 300),
      values.shortened(cell.folder, 80),
    ]
    for cell in sweep.cells[: sweep_tables.MAX_ROWS]
  ]
  if not rows:
    return []
  left_out = len(sweep.cells) - len(rows)
  note = f'{left_out:,} more are left out.' if left_out else ''
  return [page.Table('All runs', columns, rows, note)]

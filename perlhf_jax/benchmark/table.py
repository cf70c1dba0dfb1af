"""The figures of a benchmark as a table for people."""

from collections.abc import Callable, Mapping, Sequence
import statistics
from typing import Any

TUNINGS = ('lora', 'full')

_LABEL_WIDTH = 36
_COLUMN_WIDTH = 15


def make_table(figures: Mapping[str, Any]) -> str:
  """Returns lines that say what was timed, and the figures below.

  Args:
    figures: what `benchmark.benchmark` returns.
  """
  lines = _heading(figures['setting'])

  def add(label, *cells):
    columns = ''.join(f'{cell:>{_COLUMN_WIDTH}}' for cell in cells)
    lines.append(f'{label:{_LABEL_WIDTH}}{columns}'.rstrip())

  def row(label: str, path: str, write: Callable[[Any], str], of: str = ''):
    lora, full = (write(_pick(figures[name], path)) for name in TUNINGS)
    ratio = _pick(figures['lora_over_full'], f'{path}/{of}'.rstrip('/'))
    add(f'  {label}', lora, full, f'{ratio:.3f}')

  def group(title: str, path: str):
    add(title)
    row('time', f'{path}/seconds', _time)
    row('memory of the largest program', f'{path}/step_memory_bytes', _bytes)
    row('trained parameters', f'{path}/trainable_fraction', _percent)

  add('', 'LoRA', 'full', 'LoRA / full')
  group('Training step of a reward model', 'reward_step')
  group('Iteration of the policy', 'rl_iteration')
  row('weights and optimizer, all roles', 'rl_iteration/held_bytes', _bytes)
  add('Its parts, each by itself, and their shares')
  for part in figures['lora']['rl_iteration']['parts']:
    row(part, f'rl_iteration/parts/{part}', _time_and_share, 'seconds')
  for path, title in (
    ('sampler/early_stop', 'Sampler, until all responses ended'),
    ('sampler/no_early_stop', 'Sampler, always to the end'),
  ):
    add(title)
    row('tokens up to EOS per second', f'{path}/tokens_per_second', _number)
    row('steps of the decoder', f'{path}/num_steps', _number)
    row('tokens of a response, mean', f'{path}/response_length', _number)
  lines += ['', _noise(figures['seconds'])]
  return '\n'.join(lines)


def _heading(setting: Mapping[str, Any]) -> list[str]:
  least, mean, most = setting['prompt_lengths']
  return [
    f'LoRA of rank {setting["lora_rank"]} and full tuning of '
    f'{setting["parameters"]:,} parameters (weights: {setting["weights"]}), '
    f'{setting["algorithm"]}.',
    f'{setting["devices"]} x {setting["device_kind"]}, jax {setting["jax"]}; '
    f'medians of {setting["repeats"]} repeats.',
    f'{setting["batch_size"]} prompts ({setting["prompts"]}) of {least} to '
    f'{most} tokens, mean {mean:.1f}; {setting["num_samples"]} response(s) to '
    f'each, of at most {setting["task_feature_lengths"]["targets"]} tokens.',
    '',
  ]


def _noise(seconds: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
  spread, name, tuning = max(
    ((max(x) - min(x)) / statistics.median(x), name, tuning)
    for tuning, by_name in seconds.items()
    for name, x in by_name.items()
  )
  return (
    f'The repeats of one program differ by at most {spread:.0%} of their '
    f'median ({name}, {tuning}).'
  )


def _pick(figures: Mapping[str, Any], path: str) -> Any:
  for name in path.split('/'):
    figures = figures[name]
  return figures


def _time(seconds: float) -> str:
  return f'{seconds * 1e3:.1f} ms' if seconds < 1 else f'{seconds:.3f} s'


def _time_and_share(part: Mapping[str, float]) -> str:
  return f'{_time(part["seconds"])} {part["share"]:4.0%}'


def _bytes(count: float) -> str:
  return f'{count / 2**20:,.1f} MiB'


def _percent(share: float) -> str:
  return f'{100 * share:.2f} %'


def _number(number: float) -> str:
  return f'{number:,.1f}'

"""The results of a benchmark as a table."""

from collections.abc import Callable, Mapping, Sequence
import statistics
from typing import Any

_RATIO = 'lora_over_full'
_MEMORY = 'step_memory_bytes'
_LABEL_WIDTH = 36
_COLUMN_WIDTH = 15


def make_table(figures: Mapping[str, Any]) -> str:
  """Returns lines that describe the setting, and a table of the results.

  Args:
    figures: the result of `benchmark.benchmark`.
  """
  lines = _heading(figures['setting'])
  titles = {'lora': figures['setting']['lora_method'], 'full': 'full'}
  tunings = [tuning for tuning in titles if tuning in figures]
  first = figures[tunings[0]]  # All have the same rows.

  def add(label, *cells):
    columns = ''.join(f'{cell:>{_COLUMN_WIDTH}}' for cell in cells)
    lines.append(f'{label:{_LABEL_WIDTH}}{columns}'.rstrip())

  def row(label: str, path: str, write: Callable[[Any], str], of: str = ''):
    cells = [write(_pick(figures[name], path)) for name in tunings]
    if _RATIO in figures:
      ratio = _pick(figures[_RATIO], f'{path}/{of}'.rstrip('/'))
      cells.append(f'{ratio:.3f}')
    add(f'  {label}', *cells)

  def group(title: str, path: str):
    add(title)
    row('time', f'{path}/seconds', _time)
    row('memory of the largest program', f'{path}/{_MEMORY}', _bytes)
    row('trained parameters', f'{path}/trainable_fraction', _percent)

  def throughput(path: str):
    row('examples per second', f'{path}/examples_per_second', _number)
    row('tokens per second', f'{path}/tokens_per_second', _number)
    add('  padding', *(_percent(figures[t][path]['padding']) for t in tunings))

  ratio = [f'{titles["lora"]} / full'] if _RATIO in figures else []
  add('', *(titles[tuning] for tuning in tunings), *ratio)
  group('Training step of a reward model', 'reward_step')
  throughput('reward_step')
  if 'real_lengths' in first:
    each = first['real_lengths']
    add(f'On {each["batches"]} batches by length, of {each["shapes"]} shapes')
    row('time of a batch, median', 'real_lengths/seconds', _time)
    row('memory of the largest program', f'real_lengths/{_MEMORY}', _bytes)
    throughput('real_lengths')
    row(
      'examples per second, median',
      'real_lengths/examples_per_second_median',
      _number,
    )
  group('Iteration of the policy', 'rl_iteration')
  row('weights and optimizer, all roles', 'rl_iteration/held_bytes', _bytes)
  add('Its parts, each by itself, and their shares')
  for part in first['rl_iteration']['parts']:
    row(part, f'rl_iteration/parts/{part}', _time_and_share, 'seconds')
  for path, title in (
    ('sampler/early_stop', 'Sampler, until all responses ended'),
    ('sampler/no_early_stop', 'Sampler, always to the end'),
  ):
    add(title)
    row('tokens up to EOS per second', f'{path}/tokens_per_second', _number)
    row('steps of the decoder', f'{path}/num_steps', _number)
    row('tokens of a response, mean', f'{path}/response_length', _number)
    row('share of the memory rate', f'{path}/memory_share', _percent)
  add('Share of the rate of matrix products')
  row('training step of a reward model', 'reward_step/matmul_share', _percent)
  if 'real_lengths' in first:
    row('on batches by length', 'real_lengths/matmul_share', _percent)
  row('iteration of the policy', 'rl_iteration/matmul_share', _percent)
  for part in first['rl_iteration']['parts']:
    row(part, f'rl_iteration/parts/{part}/matmul_share', _percent)
  lines += ['', _noise(figures['seconds'])]
  return '\n'.join(lines)


def _heading(setting: Mapping[str, Any]) -> list[str]:
  least, mean, most = setting['prompt_lengths']
  names = {
    'lora': f'{setting["lora_method"]} of rank {setting["lora_rank"]}',
    'full': 'full tuning',
  }
  tuned = ' and '.join(names[tuning] for tuning in setting['tunings'])
  return [
    f'{tuned[0].upper()}{tuned[1:]} of '
    f'{setting["parameters"]:,} parameters (weights: {setting["weights"]}), '
    f'{setting["algorithm"]}.',
    f'{setting["devices"]} x {setting["device_kind"]}, jax {setting["jax"]}; '
    f'medians of {setting["repeats"]} repeats.',
    f'A device multiplies {setting["dtype"]} matrices at '
    f'{setting["matmul_flops_per_second"] / 1e9:,.1f} GFLOP/s and moves '
    f'{setting["memory_bytes_per_second"] / 1e9:,.1f} GB/s.',
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

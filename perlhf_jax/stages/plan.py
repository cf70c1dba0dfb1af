"""Says which TPU slice a run fits, before one is rented.

Compiles every program of a run for slices that are not here and tabulates
what a device needs, for LoRA and for full tuning. Needs libtpu, and neither
data nor weights: only shapes are computed.
"""

from collections.abc import Mapping, Sequence
import json
from typing import Annotated

from etils import epath
import jax

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.stages import benchmark_batches
from perlhf_jax.stages import line_files
from perlhf_jax.stages import plan_compiling
from perlhf_jax.stages import plan_programs
from perlhf_jax.stages import plan_slices
from perlhf_jax.stages import plan_table
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import topologies

Tuning = Annotated[str, checks.OneOf('lora', 'full')]
BATCH_SIZE, TOPOLOGY = 'batch_size', 'topology'


@checks.checked
def plan(
  *,
  topology: str,
  algorithm: algorithm_lib.Algorithm,
  lora: lora_lib.LoraConfig,
  lora_optimizer: optimizers.Optimizer,
  full_optimizer: optimizers.Optimizer,
  task_feature_lengths: Mapping[str, Annotated[int, checks.AtLeastOne]],
  batch_size: Annotated[int, checks.AtLeastOne],
  num_samples: Annotated[int, checks.AtLeastOne] = 1,
  accumulation_steps: Annotated[int, checks.AtLeastOne] = 1,
  temperature: Annotated[float, checks.Positive] = 1.0,
  model: t5_config.T5Config | None = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
  tunings: Tuning | Sequence[Tuning] = ('lora', 'full'),
  search: Annotated[str, checks.OneOf('batch_size', 'topology')] | None = None,
  level: Annotated[str, checks.OneOf('cheap', 'default')] = 'cheap',
  output: str | None = None,
) -> list[plan_compiling.Row]:
  """Compiles the programs of a run for TPU slices, and prints a table.

  Args:
    topology: names of slices such as `v5e-16`, with commas between; to search
      for a slice, also names of generations such as `v5e`.
    algorithm: Reinforce, Rloo, Grpo or Ppo.
    lora: the adapters that are held against full tuning.
    lora_optimizer: for LoRA.
    full_optimizer: for full tuning.
    task_feature_lengths: tokens of `inputs` and `targets` at most.
    batch_size: prompts of an iteration, and pairs of a reward step.
    num_samples: responses of each prompt.
    accumulation_steps: parts in which an update is differentiated.
    temperature: of the sampling, above 0.
    model: architecture.
    partitioner: how the model and batches are split among devices.
    tunings: `lora`, `full`, or a tuple of them.
    search: `batch_size` for the largest batch of which all programs fit;
      `topology` for the smallest slice of each generation in which they do;
      None to take both as they are.
    level: how much the compiler optimizes, `cheap` or `default`.
    output: JSON file for the rows; None for none.

  Returns:
    What the file holds: a row a program, of `plan_compiling.compile_program`,
    with `tuning`, `topology` and `batch_size`.

  Raises:
    UserError: any input that cannot be used; raised before anything is
      compiled.
  """
  # A TPU of this machine, if it has one, is not what is asked about.
  jax.config.update('jax_platforms', 'cpu')
  if model is None:
    raise errors.ConfigError('No model: give a gin/models/*.gin file.')
  benchmark_batches.check_lengths(task_feature_lengths)
  algorithm_lib.check_num_samples(algorithm, num_samples)
  if output is not None:
    line_files.check_output(output)
  tunings = (tunings,) if isinstance(tunings, str) else tunings
  by_tuning = {
    'lora': (lora, lora_optimizer),
    'full': (None, full_optimizer),
  }
  settings = [
    plan_programs.Setting(
      model,
      *_pick(by_tuning, tuning),
      algorithm,
      dict(task_feature_lengths),
      batch_size,
      num_samples,
      accumulation_steps,
      temperature,
    )
    for tuning in tunings
  ]
  planner = plan_slices.Planner(partitioner, plan_compiling.OPTIONS[level])
  names = [name for name in topology.split(',') if name.strip()]
  for name, values in (('TOPOLOGY', names), ('TUNINGS', tunings)):
    if not values:
      raise errors.ConfigError(f'{name} names none: give at least one.')
  if search == TOPOLOGY:
    families = dict.fromkeys(map(topologies.family, names))
    placed = [
      planner.on_smallest_slice(family, setting)
      for family in families
      for setting in settings
    ]
  else:
    slices = [topologies.find(name) for name in names]
    placed = [(each, setting) for each in slices for setting in settings]
    for each, setting in placed:
      mesh = planner.mesh(each)
      if search is None:
        setting.check_batch_size(mesh)
    if search == BATCH_SIZE:
      placed = [planner.with_largest_batch(pair) for pair in placed]
  rows = [row for pair in placed for row in planner.rows(pair)]
  print(plan_table.make_table(rows, settings[0]))
  if output is not None:
    epath.Path(output).write_text(json.dumps(rows, indent=2) + '\n')
  return rows


def _pick(by_tuning, tuning):
  if tuning not in by_tuning:
    raise errors.ConfigError(
      f'TUNINGS has {tuning!r}; known ones are {", ".join(by_tuning)}.'
    )
  return by_tuning[tuning]

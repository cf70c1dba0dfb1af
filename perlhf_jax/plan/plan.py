"""Finds the TPU slice that a run fits, before one is rented.

Compiles every program of a run for slices that are not here, and tabulates the
memory per device, for LoRA and full tuning. Needs libtpu, but neither data nor
weights, because it works with shapes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import jax

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.data import dataset_config
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.plan import compiling
from perlhf_jax.plan import interruption
from perlhf_jax.plan import programs as programs_lib
from perlhf_jax.plan import rows as rows_lib
from perlhf_jax.plan import slices as slices_lib
from perlhf_jax.plan import table as table_lib
from perlhf_jax.rl import algorithm as algorithm_lib
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import topologies

Tuning = Annotated[str, checks.OneOf('lora', 'full')]
ProgramName = Annotated[str, checks.OneOf(*programs_lib.PROGRAMS)]
BATCH_SIZE, TOPOLOGY = 'batch_size', 'topology'


@checks.checked
def plan(
  *,
  topology: str,
  algorithm: algorithm_lib.Algorithm,
  lora: lora_lib.LoraConfig,
  optimizer: optimizers.Optimizer,
  task_feature_lengths: Mapping[str, Annotated[int, checks.AtLeastOne]],
  batch_size: Annotated[int, checks.AtLeastOne],
  num_samples: Annotated[int, checks.AtLeastOne] = 1,
  accumulation_steps: Annotated[int, checks.AtLeastOne] = 1,
  rollout_parts: Annotated[int, checks.AtLeastOne] = 1,
  temperature: Annotated[float, checks.Positive] = 1.0,
  model: t5_config.T5Config | None = None,
  partitioner: partitioning.Partitioner = partitioning.DATA_PARALLEL,
  tunings: Tuning | Sequence[Tuning] = ('lora', 'full'),
  programs: ProgramName | Sequence[ProgramName] = programs_lib.PIPELINE,
  search: Annotated[str, checks.OneOf('batch_size', 'topology')] | None = None,
  level: Annotated[str, checks.OneOf('cheap', 'default')] = 'cheap',
  output: str | None = None,
) -> list[compiling.Row]:
  """Compiles the programs of a run for TPU slices, and prints a table.

  A row is printed, and kept in `output`, as soon as its program is compiled. An
  interrupted plan resumes from there when it is started again. For each program
  full tuning comes first, so that the row of LoRA can compare the two.

  Args:
    topology: slices of Cloud TPU, separated by commas; 2xv5e-16 is two in one
      run; to search for a slice, also generations such as v5e.
    algorithm: Reinforce, Rloo, Grpo or Ppo.
    lora: the adapters to compare with full tuning.
    optimizer: optimizer of every trained model.
    task_feature_lengths: maximum tokens of `inputs` and `targets`.
    batch_size: prompts per iteration, and pairs per step.
    num_samples: responses per prompt.
    accumulation_steps: number of parts of an update that are differentiated one
      after the other.
    rollout_parts: number of parts of a batch that are sampled one after the
      other.
    temperature: temperature of the sampling, above 0.
    model: architecture.
    partitioner: how to shard the model and batches over devices.
    tunings: `lora`, `full`, or a tuple of them.
    programs: what to compile: `reward_step`, `rl_rollout`, `rl_scoring`,
      `rl_update`, `dpo_step`, or a tuple of them.
    search: batch_size: the largest batch that fits; topology: the smallest
      slice of each generation; by default neither.
    level: how much the compiler optimizes, `cheap` or `default`.
    output: a JSON file, written after every row; the same command resumes from
      it, if the setting and the libraries are the same; during a search it also
      has the rows of the search.

  Returns:
    The content of the file at the end: one row per program, from
    `compiling.compile_program`, with `tuning`, `topology`, `batch_size` and
    `fingerprint`.

  Raises:
    UserError: an input cannot be used; raised before anything is compiled.
  """
  # The plan is not about a TPU of this machine.
  jax.config.update('jax_platforms', 'cpu')
  if model is None:
    raise errors.ConfigError('There is no model. Give a gin/models/*.gin file.')
  dataset_config.check_lengths(task_feature_lengths)
  algorithm_lib.check_algorithm(algorithm, num_samples)
  tunings = (tunings,) if isinstance(tunings, str) else tunings
  programs = (programs,) if isinstance(programs, str) else programs
  by_tuning = {'lora': lora, 'full': None}
  if 'full' in tunings:
    optimizers.check_adapted(optimizer, None)
  settings = [
    programs_lib.Setting(
      model,
      _pick(by_tuning, tuning),
      optimizer,
      algorithm,
      dict(task_feature_lengths),
      batch_size,
      num_samples,
      accumulation_steps,
      rollout_parts,
      temperature,
      tuple(programs),
    )
    for tuning in sorted(tunings, key=lambda tuning: tuning != 'full')
  ]
  names = [name for name in topology.split(',') if name.strip()]
  for name, values in (
    ('TOPOLOGY', names),
    ('TUNINGS', tunings),
    ('PROGRAMS', programs),
  ):
    if not values:
      raise errors.ConfigError(f'{name} is empty: give at least one.')
  options = compiling.OPTIONS[level]
  kept = rows_lib.Rows(
    output,
    {
      setting.tuning: rows_lib.fingerprint(setting, partitioner, options)
      for setting in settings
    },
  )
  planner = slices_lib.Planner(partitioner, options, kept)
  groups = _place(planner, names, settings, search)
  table, rows = table_lib.Table(), []
  with interruption.ends_quietly(kept.summary):
    print(table.head(settings[0]), flush=True)
    for group in groups:
      for row in planner.rows(group):
        print(table.add(row), flush=True)
        rows.append(row)
  kept.finish(rows)
  if (foot := table.foot()) is not None:
    print(foot)
  return rows


def _place(
  planner: slices_lib.Planner,
  names: Sequence[str],
  settings: Sequence[programs_lib.Setting],
  search: str | None,
) -> Iterator[Sequence[slices_lib.Placed]]:
  """Checks names and batch sizes, and yields settings to compile together.

  A search also compiles, when the iterator reaches its result.
  """
  if search == TOPOLOGY:
    families = list(dict.fromkeys(map(topologies.family, names)))
    return (
      [planner.on_smallest_slice(family, setting)]
      for family in families
      for setting in settings
    )
  slices = [topologies.find(name) for name in names]
  for each in slices:
    for setting in settings:
      mesh = planner.mesh(each)
      if search is None:
        setting.check_batch_size(mesh)
  if search is None:
    return ([(each, setting) for setting in settings] for each in slices)
  return (
    [planner.with_largest_batch((each, setting))]
    for each in slices
    for setting in settings
  )


def _pick(by_tuning, tuning):
  if tuning not in by_tuning:
    raise errors.ConfigError(
      f'TUNINGS has {tuning!r}; known ones are {", ".join(by_tuning)}.'
    )
  return by_tuning[tuning]

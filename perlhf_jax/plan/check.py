"""Checks a command without starting it: `perlhf COMMAND --check`.

Checks the arguments, the mesh and the dimensions that it divides, checkpoints
(without their weights), the first rows of the data, the files that the command
reads and writes, and the least memory per device. Launchers run it before they
rent machines. It skips paths in a bucket that does not answer, and says so.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import inspect
import os
import pathlib
from typing import Annotated, Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.checkpoints import initial
from perlhf_jax.checkpoints import loading
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.data import dataset_config
from perlhf_jax.data import input_pipeline
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.plan import check_memory
from perlhf_jax.plan import check_report
from perlhf_jax.runs import model_dirs
from perlhf_jax.stages import evaluate
from perlhf_jax.stages import line_files
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import run_lock
from perlhf_jax.training import topologies

_ROWS = 100
_SPLITS = ('dataset', 'eval_dataset')
# Arguments of `evaluate` that select the data.
_DATASET_ARGUMENTS = (
  'mixture_or_task_name',
  'split',
  'batch_size',
  'max_examples',
  'task_feature_lengths',
  'module',
  'use_cached',
  'skip_bad_rows',
)


def check(
  function: Callable[..., Any],
  arguments: Mapping[str, Any],
  *,
  topology: str | None = None,
  num_devices: Annotated[int, checks.AtLeastOne] | None = None,
) -> None:
  """Checks a call of a command's function, and prints the results.

  Args:
    function: the function of a stage, such as `train_sft.train_sft`.
    arguments: its keyword arguments.
    topology: with --check: the Cloud TPU slice of the run, such as v5e-16.
    num_devices: with --check: the number of devices of the run; by default
      all of the slice, or of this machine.

  Raises:
    UserError: something is wrong; lists all mistakes.
  """
  defaults = {
    name: parameter.default
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is not parameter.empty
  }
  values = {**defaults, **arguments}
  if topology is not None or num_devices is not None:
    # The check is not about an accelerator of this machine.
    jax.config.update('jax_platforms', 'cpu')
  report = check_report.Report()
  with report.part(), _quiet():
    checks.check_arguments(function, values)
    report.ok('arguments', f'{len(arguments)} of {function.__name__}')
    _Check(report, values, topology, num_devices).run()
  report.finish()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides log messages of the parts of a run, since no run starts."""
  logger = logging.get_absl_logger()
  level = logger.level
  logger.setLevel('WARNING')
  try:
    yield
  finally:
    logger.setLevel(level)


class _Check:
  """One check of a command: its inputs and its results."""

  def __init__(self, report, values, topology, num_devices):
    self._report = report
    self._values = values
    self._slice = None if topology is None else topologies.find(topology)
    if num_devices is None:
      num_devices = (
        jax.device_count() if self._slice is None else self._slice.num_devices
      )
    self._num_devices = num_devices
    self._mesh = None
    self._config = self._vocabulary = None

  def run(self) -> None:
    """Checks everything, and collects the mistakes."""
    for part in (
      self._check_mesh,
      self._check_outputs,
      self._check_optimizers,
      self._check_start,
      self._check_checkpoints,
      self._check_splits,
      self._check_evaluation,
      self._check_lines,
      self._check_memory,
    ):
      with self._report.part():
        part()

  def _get(self, *names: str) -> Any:
    """Returns the value of the first of some arguments that the command has."""
    for name in names:
      if self._values.get(name) is not None:
        return self._values[name]
    return None

  def _check_mesh(self) -> None:
    partitioner = self._get('partitioner')
    if partitioner is None:
      partitioner = partitioning.Partitioner(self._get('mesh_shape'))
    slices = 1 if self._slice is None else self._slice.num_slices
    self._mesh = partitioner.abstract_mesh(self._num_devices, slices)
    loop, algorithm = self._get('loop'), self._get('algorithm')
    parts = (
      getattr(loop, 'accumulation_steps', 1),
      getattr(algorithm, 'minibatches', 1),
    )
    dataset = self._get('dataset')
    size = self._get('batch_size') if dataset is None else dataset.batch_size
    partitioning.check_batch_size(size, self._mesh, *parts)
    rollout_parts = self._get('rollout_parts') or 1
    partitioning.check_parts(size, self._mesh, rollout_parts)
    if (eval_dataset := self._get('eval_dataset')) is not None:
      partitioning.check_batch_size(eval_dataset.batch_size, self._mesh)
      partitioning.check_parts(
        eval_dataset.batch_size, self._mesh, rollout_parts
      )
    where = f' of {self._slice.name}' if self._slice is not None else ''
    self._report.ok(
      'mesh',
      f'(data, fsdp, tensor) = {tuple(self._mesh.shape.values())} on '
      f'{self._num_devices} device(s){where}, batches of {size}',
    )

  def _check_outputs(self) -> None:
    if (model_dir := self._get('model_dir')) is not None:
      self._check_model_dir(model_dir)
    if (output := self._get('output_path', 'output')) is not None:
      self._report.writes(output)
      if not self._skips('output', output):
        line_files.check_output(output)
        self._report.ok('output', f'{output} can be written')

  def _check_model_dir(self, model_dir: str) -> None:
    self._report.writes(model_dir)
    if self._skips('MODEL_DIR', model_dir):
      return
    if '://' not in model_dir:
      _check_writable(model_dir)
    folder = epath.Path(model_dir)
    if folder.is_dir():
      run_lock.check_free(folder)
    train_steps = self._get('loop').train_steps
    held = model_dirs.find(folder, train_steps)
    if held.metadata is None:
      self._report.ok('MODEL_DIR', f'{model_dir} can be written')
      return
    task = self._get('dataset').mixture_or_task_name
    if held.metadata.task != task:
      raise errors.CheckpointError(
        f'MODEL_DIR {model_dir} already holds another run: its task is '
        f'{held.metadata.task}, this run has {task}. Give another MODEL_DIR.'
      )
    self._report.ok(
      'MODEL_DIR',
      f'{model_dir} holds step {held.step}, from which the run goes on',
    )

  def _check_optimizers(self) -> None:
    for value in self._values.values():
      if isinstance(value, optimizers.Optimizer) and 'lora' in self._values:
        optimizers.check_adapted(value, self._values['lora'])

  def _check_start(self) -> None:
    if 'initial_checkpoint_path' not in self._values:
      return
    values = self._values
    model, vocabulary = values.get('model'), values.get('vocabulary')
    lora, path = values.get('lora'), values['initial_checkpoint_path']
    vit_path = values.get('initial_vit_path')
    self._config, self._vocabulary = model, vocabulary
    if path is None:
      if 'dataset' in values:
        initial.check_from_scratch(model, vocabulary, lora, vit_path)
    elif not self._skips('INITIAL_CHECKPOINT_PATH', path, reads=True):
      self._config, self._vocabulary = self._peek_start(path)
    if lora is not None and self._config is not None:
      paths = encoder_decoder.dense_module_paths(self._config)
      adapters = lora_lib.resolve(lora, paths)
      self._report.ok('LoRA', f'{len(adapters.module_paths)} layers adapted')

  def _peek_start(self, path: str) -> tuple[Any, Any]:
    peeked = loading.peek(path, self._get('base_checkpoint'))
    loading.check_language_model(peeked, path)
    config, vit_path = peeked.config, self._get('initial_vit_path')
    if vit_path is not None:
      self._report.reads(vit_path)
      config = loading.config_with_vit(peeked, vit_path)
    vocabulary = peeked.vocabulary or self._get('vocabulary')
    config = initial.match(
      self._get('model'),
      self._get('vocabulary'),
      config,
      vocabulary,
      path,
      adds_vit=vit_path is not None,
    )
    self._report.ok('INITIAL_CHECKPOINT_PATH', f'{path} is {peeked}')
    return config, vocabulary

  def _check_checkpoints(self) -> None:
    """Checks checkpoints that are not trained further."""
    rewards, policy = self._get('rewards'), self._get('policy')
    if rewards is None and policy is not None:
      rewards = policy.rewards
    for path in () if rewards is None else rewards.checkpoints:
      with self._report.part():
        self._peek('REWARD_CHECKPOINT', path, is_reward_model=True)
    if rewards is not None and self._get('kl_beta') is not None:
      rewards.check_any()
    for path in getattr(self._get('reward'), 'ensemble', ()):
      with self._report.part():
        self._peek('ENSEMBLE', path, is_reward_model=True)
    for name, path, is_reward_model in (
      ('checkpoint', self._get('checkpoint'), None),
      ('base_checkpoint', self._get('base_checkpoint'), False),
      ('BASELINE_CHECKPOINT', getattr(policy, 'baseline_checkpoint', None), 0),
    ):
      if path is not None:
        with self._report.part():
          self._peek(name, path, is_reward_model)

  def _peek(self, name, path, is_reward_model) -> None:
    if self._skips(name, path, reads=True):
      return
    base = self._get('base_checkpoint') if name == 'checkpoint' else None
    peeked = loading.peek(path, base)
    if is_reward_model is not None:
      if peeked.is_reward_model != bool(is_reward_model):
        wanted = 'a reward model' if is_reward_model else 'a language model'
        raise errors.CheckpointError(
          f'{name} {path} is {peeked}, not {wanted}.'
        )
    theirs, ours = peeked.vocabulary, self._vocabulary
    if is_reward_model and None not in (theirs, ours) and theirs != ours:
      raise errors.CheckpointError(
        f'The reward model {path} reads {theirs}, but the policy writes {ours}.'
        " Train it from a checkpoint with the policy's vocabulary."
      )
    if name == 'checkpoint':
      self._config, self._vocabulary = peeked.config, peeked.vocabulary
    self._report.ok(name, f'{path} is {peeked}')

  def _check_splits(self) -> None:
    for name in _SPLITS:
      dataset = self._values.get(name)
      if dataset is not None:
        with self._report.part():
          self._read_rows(dataset)

  def _check_evaluation(self) -> None:
    """Checks the data of `evaluate`, which the checkpoint may name."""
    path = self._values.get('checkpoint')
    if 'split' not in self._values or check_report.unreachable(path):
      return
    peeked = loading.peek(path, self._get('base_checkpoint'))
    folder = path
    if peeked.metadata is not None:
      folder = os.fspath(pathlib.PurePosixPath(peeked.path).parents[1])
    if self._get('output_path') is None:
      self._report.writes(folder if '://' in path else os.path.relpath(folder))
    if self._get('input_path') is not None:
      return
    self._read_rows(
      evaluate.dataset_of(
        path,
        peeked.metadata,
        **{name: self._values[name] for name in _DATASET_ARGUMENTS},
      )
    )

  def _read_rows(self, dataset: dataset_config.DatasetConfig) -> None:
    """Reads the first rows of a split."""
    what = f'{dataset.mixture_or_task_name}/{dataset.split}'
    if self._vocabulary is None:
      self._report.skipped(what, 'the vocabulary is not known here')
      return
    if self._skips(what, os.environ.get('PERLHF_DATA_DIR')):
      return
    most = min(dataset.max_examples or _ROWS, _ROWS)
    examples = input_pipeline.load_examples(
      dataclasses.replace(dataset, max_examples=most),
      self._vocabulary,
      None if self._config is None else self._config.image_size,
    )
    kind = examples.kind.name
    self._report.ok(what, f'{kind}, first {len(examples)} rows read')

  def _check_lines(self) -> None:
    """Checks the lines that `score`, `generate` and `evaluate` read."""
    path = self._get('input_path')
    if path is None or self._skips('input', path, reads=True):
      return
    if 'split' in self._values:
      names = 'max_examples', 'mixture_or_task_name'
      candidates = evaluate.read_candidates(
        path, *(self._values[name] for name in names)
      )
      rows = candidates.rows
    else:
      needed = (
        ('prompt', 'response') if 'seed' not in self._values else ('prompt',)
      )
      rows = line_files.read(path, needed)
    self._report.ok('input', f'{path} has {len(rows)} lines')

  def _check_memory(self) -> None:
    """Compares weights and optimizer states with the memory of a device."""
    if self._config is None or self._mesh is None:
      return
    needed = check_memory.held_bytes(self._config, self._values, self._mesh)
    free, where = check_memory.free_bytes(self._slice, self._num_devices)
    text = f'weights and optimizer states take {check_memory.readable(needed)}'
    if free is None:
      self._report.ok('memory', f'{text} of a device')
      return
    text += f' of the {check_memory.readable(free)} of a device {where}'
    if needed > free:
      raise errors.ConfigError(
        f'Not enough memory: {text}. Split the model over more devices by '
        'MESH_SHAPE (fsdp), use LoRA, or use a smaller model.'
      )
    self._report.ok('memory', f'{text}; activations need more')

  def _skips(self, what: str, path: str | None, *, reads: bool = False) -> bool:
    """Returns whether a path cannot be checked from here, and reports it."""
    if reads:
      self._report.reads(path)
    reason = check_report.unreachable(path)
    if reason is not None:
      self._report.skipped(what, reason)
    return reason is not None


def _check_writable(path: str) -> None:
  """Checks that a folder can be made or written, without making it.

  Raises:
    CheckpointError: it cannot.
  """
  folder = pathlib.Path(os.path.abspath(path))
  while not folder.exists():
    folder = folder.parent
  if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
    reason = (
      'is not a folder' if not folder.is_dir() else 'is read-only for you'
    )
    raise errors.CheckpointError(
      f'MODEL_DIR {path} cannot be written to: {folder} {reason}. Choose a '
      'folder that you may write to.'
    )

"""What the files of a run say: whether it has finished, and its metrics."""

from collections.abc import Mapping
import math
from typing import Any

from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.runs import model_dirs
from perlhf_jax.stages import evaluate
from perlhf_jax.sweep import description
from perlhf_jax.training import metric_writer
from perlhf_jax.training import step_files
from perlhf_jax.training import step_log
from perlhf_jax.training import train_loop

_NOT_METRICS = 'step', 'steps', 'split', 'examples'
# An evaluation of other arguments is moved there.
_EARLIER = 'eval-earlier.json'
# What differs between cells, and what cannot change a result.
_OF_NO_ACCOUNT = frozenset(
  {
    'ACCEPT_CHANGES',
    'LEARNING_RATE',
    'LOG_PERIOD',
    'MESH_SHAPE',
    'MODEL_DIR',
    'RANDOM_SEED',
    'REWARD_TIME_LIMIT',
    'ROLLOUT_PARTS',
    'WANDB',
  }
)
_CHANGES_SHOWN = 3


def has_finished(model_dir: epath.Path, train_steps: int) -> bool:
  """Whether a run says that it has made all its steps."""
  return train_loop.has_finished(summary(model_dir), train_steps)


def has_begun(model_dir: epath.Path) -> bool:
  """Whether a run has a step or a summary, which its config.gin has made."""
  root = model_dir / step_files.CHECKPOINTS
  has_steps = root.is_dir() and step_files.step_folders(root)
  return bool(has_steps or (model_dir / train_loop.SUMMARY).exists())


def check_settings(model_dir: epath.Path, config: str, cell: str) -> None:
  """Checks that a run that has begun has the settings that it would have now.

  Args:
    model_dir: its MODEL_DIR.
    config: the gin configuration of its arm, as text.
    cell: its name, for the message.

  Raises:
    CheckpointError: it has others.
  """
  path = model_dir / model_dirs.CONFIG
  text = path.read_text() if path.exists() else ''
  try:
    changes = operative_config.changes(text, config)
  except (ValueError, errors.ConfigError) as error:
    raise errors.CheckpointError(
      f'{path} cannot be read as gin ({error}). Move {model_dir} away to '
      'run the cell again.'
    ) from error
  changes = [f'{n}: {c}' for n, c in changes.items() if n not in _OF_NO_ACCOUNT]
  if not changes:
    return
  more = len(changes) - _CHANGES_SHOWN
  listed = ', '.join(changes[:_CHANGES_SHOWN])
  if more > 0:
    listed += f' and {more} more'
  raise errors.CheckpointError(
    f'The run {cell} in {model_dir} has other settings than its arm has now: '
    f'{listed}. Give the earlier settings, another SWEEP_DIR, or another name '
    'for the arm; or move the folder of the run away to run it again.'
  )


def summary(model_dir: epath.Path) -> dict[str, Any]:
  """Returns the content of summary.json; {} if it is not there or not whole."""
  return _read_json(model_dir / train_loop.SUMMARY)


def _read_json(path: epath.Path) -> dict[str, Any]:
  try:
    content = strict_json.loads(plain_files.read(path, errors.DataError))
  except (FileNotFoundError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def checkpoint_step(model_dir: epath.Path, checkpoint: str) -> int:
  """Returns the step of the checkpoint that counts.

  Args:
    model_dir: MODEL_DIR of a run that has finished.
    checkpoint: `best` or `last`.

  Raises:
    CheckpointError: there is no such checkpoint.
  """
  if checkpoint == description.LAST:
    return summary(model_dir)['steps']
  path = model_dir / step_files.CHECKPOINTS / step_files.BEST
  found = step_files.find_step(str(path))
  if found is None:
    raise errors.CheckpointError(f'{model_dir} holds no checkpoint.')
  return int(found.name)


def validation_metrics(model_dir: epath.Path, step: int) -> dict[str, Any]:
  """Returns the validation record of a step.

  Raises:
    ConfigError: there is none.
  """
  path = model_dir / metric_writer.FILE_NAME
  records, _ = step_log.parse(path.read_bytes() if path.exists() else b'')
  found = {}
  for record in records:
    if record.get('split') == 'eval' and record['step'] == step:
      found = record
  if not found:
    raise errors.ConfigError(
      f'{path} has no validation record of step {step}; METRIC needs '
      'validation, with an EVAL_PERIOD that reaches that step.'
    )
  return found


def evaluation(model_dir: epath.Path, step: int) -> dict[str, Any]:
  """Returns the content of eval.json; {} if it is of another step."""
  content = _read_json(model_dir / evaluate.FILE_NAME)
  return content if content.get('step') == step else {}


def set_evaluation_aside(model_dir: epath.Path) -> None:
  """Moves an evaluation that does not count out of the way."""
  path = model_dir / evaluate.FILE_NAME
  if path.exists():
    path.replace(model_dir / _EARLIER)


def metric_in(
  metrics: Mapping[str, Any], name: str, setting: str, where: str
) -> float | None:
  """Returns a metric; None if it is undefined.

  Args:
    metrics: metrics by name.
    name: the metric.
    setting: the setting that names it, for the message.
    where: what the metrics are, for the message.

  Raises:
    ConfigError: there is no such metric.
  """
  if name not in metrics or isinstance(metrics[name], str | list | dict):
    known = ', '.join(numbers(metrics)) or 'none'
    raise errors.ConfigError(
      f'{setting} is {name!r}, but {where} has no such metric; it has {known}.'
    )
  value = metrics[name]
  return None if value is None else float(value)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics that are finite numbers."""
  return {
    name: float(value)
    for name, value in metrics.items()
    if isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
    and name not in _NOT_METRICS
  }

"""What the files of a run say: whether it has finished, and its metrics."""

from collections.abc import Mapping
import math
from typing import Any

from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.sweep import description
from perlhf_jax.training import metric_writer
from perlhf_jax.training import step_files
from perlhf_jax.training import step_log

SUMMARY, EVALUATION = 'summary.json', 'eval.json'
_NOT_METRICS = 'step', 'steps', 'split', 'examples'


def has_finished(model_dir: epath.Path, train_steps: int) -> bool:
  """Whether a run says that it has made all its steps."""
  return read_json(model_dir / SUMMARY).get('steps') == train_steps


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads an object; {} if it is not there, or not whole."""
  try:
    content = strict_json.loads(plain_files.read(path, errors.DataError))
  except (OSError, ValueError):
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
    return read_json(model_dir / SUMMARY)['steps']
  path = model_dir / step_files.CHECKPOINTS / step_files.BEST
  found = step_files.find_step(str(path))
  if found is None:
    raise errors.CheckpointError(f'{model_dir} holds no checkpoint.')
  return int(found.name)


def validation_metrics(model_dir: epath.Path, step: int) -> dict[str, Any]:
  """Returns the evaluation record of a step; {} if there is none."""
  path = model_dir / metric_writer.FILE_NAME
  records, _ = step_log.parse(path.read_bytes() if path.exists() else b'')
  found = {}
  for record in records:
    if record.get('split') == 'eval' and record['step'] == step:
      found = record
  return found


def evaluation(model_dir: epath.Path, step: int) -> dict[str, Any]:
  """Returns the content of eval.json; {} if it is of another step."""
  content = read_json(model_dir / EVALUATION)
  return content if content.get('step') == step else {}


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
  """Returns the metrics that are finite numbers; `kl_k1` is named `kl`."""
  return {
    'kl' if name == 'kl_k1' else name: float(value)
    for name, value in metrics.items()
    if isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
    and name not in _NOT_METRICS
  }

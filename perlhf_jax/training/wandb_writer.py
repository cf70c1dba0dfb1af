"""Metrics of a run on Weights & Biases, beside those in MODEL_DIR.

W&B's own settings apply: WANDB_MODE (`offline` needs no account), WANDB_ENTITY,
WANDB_API_KEY. Nothing that W&B does ends a run or holds it up without end: its
first failure is a warning, and the run goes on without it.

W&B cannot take records back. After a kill it has the records since the last
checkpoint twice: those of the killed start, and those of the start that
repeated the steps, perhaps with other settings.
"""

from collections.abc import Callable, Mapping
import os
import re
import secrets
from types import ModuleType
from typing import Any

from absl import logging
from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.core import operative_config
from perlhf_jax.training import step_files

ID_FILE = 'wandb_id.txt'
_CONFIG = 'config.gin'
_STEP = 'step'
_DEFAULT_PROJECT = 'perlhf'
# How long a question for an account waits for an answer, and the end of a run
# for uploads. W&B's own limits are none.
_LOGIN_SECONDS = 30
_FINISH_SECONDS = 60


def load() -> ModuleType:
  """Imports W&B.

  Raises:
    ConfigError: it is not installed.
  """
  try:
    import wandb

    # A folder `wandb`, as W&B makes it, can be imported too.
    if hasattr(wandb, 'init'):
      return wandb
  except ImportError:
    pass
  raise errors.ConfigError(
    'LoopConfig.wandb (WANDB) needs Weights & Biases, which is not installed: '
    "pip install 'perlhf-jax[wandb]', or leave it out."
  )


class WandbWriter:
  """Writes scalars to one W&B run, which a resumed run continues."""

  def __init__(self, model_dir: epath.Path):
    """Starts the run, or continues the one that MODEL_DIR names.

    The project has the name of the folder of MODEL_DIR (or WANDB_PROJECT), and
    the run that of MODEL_DIR itself. Its configuration has the macros of
    MODEL_DIR/config.gin, by which runs can be filtered, and the whole text.

    Args:
      model_dir: MODEL_DIR of the run.

    Raises:
      ConfigError: W&B is not installed.
    """
    wandb, self._run = load(), None
    model_dir = step_files.absolute(os.fspath(model_dir))

    def start():
      # It asks before it reads the settings of a run.
      wandb.setup(wandb.Settings(login_timeout=_LOGIN_SECONDS))
      run = wandb.init(
        project=os.environ.get('WANDB_PROJECT') or project_of(model_dir),
        name=model_dir.name,
        id=_run_id(model_dir),
        resume='allow',
        config=_configuration(model_dir),
        # Else it would write to the folder of the process.
        **({'dir': str(model_dir)} if _is_local(model_dir) else {}),
        settings={
          'console': 'off',  # The log and the progress are ours.
          'finish_timeout': _FINISH_SECONDS,
        },
      )
      for split in ('train', 'eval'):
        # W&B's own steps cannot go back, as a resumed run's do.
        run.define_metric(f'{split}/*', step_metric=_STEP)
      self._run = run

    self._guarded('start', start)

  def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Logs finite metrics as `<split>/<name>`.

    Args:
      step: number of updates so far.
      split: `train` or `eval`.
      metrics: numbers by name.
    """
    named = {f'{split}/{name}': value for name, value in metrics.items()}
    self._guarded('log', lambda: self._run.log({**named, _STEP: step}))

  def close(self, *, failed: bool = False) -> None:
    """Waits until W&B has everything, for a minute at most.

    Args:
      failed: whether the run has not come to its end; W&B then shows it as
        failed.
    """
    self._guarded('finish', lambda: self._run.finish(exit_code=int(failed)))
    self._run = None

  def _guarded(self, what: str, call: Callable[[], Any]) -> None:
    if self._run is None and what != 'start':
      return
    try:
      call()
    except Exception as error:
      self._run = None
      logging.warning(
        'Weights & Biases failed (%s: %s: %s). Training goes on without it; '
        'metrics.jsonl and TensorBoard have every metric. With '
        'WANDB_MODE=offline it needs no connection and no account.',
        *(what, type(error).__name__, error),
      )


def project_of(model_dir: epath.Path) -> str:
  """Returns the name of a run's project: the folder that holds MODEL_DIR."""
  name = re.sub(r'[^\w.-]', '-', model_dir.parent.name)
  return name[:128] or _DEFAULT_PROJECT


def _run_id(model_dir: epath.Path) -> str:
  """Returns the identity of the run, which its first start draws."""
  file = model_dir / ID_FILE
  if file.exists() and (known := file.read_text().strip()):
    return known
  drawn = secrets.token_hex(8)
  file.write_text(f'{drawn}\n')
  return drawn


def _configuration(model_dir: epath.Path) -> dict[str, Any]:
  file = model_dir / _CONFIG
  if not file.exists():
    return {}
  text = file.read_text()
  return {**operative_config.macros(text), _CONFIG: text}


def _is_local(path: epath.Path) -> bool:
  return '://' not in str(path)

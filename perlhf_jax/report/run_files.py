"""Reads what a MODEL_DIR holds about its run, whole or half-finished."""

from collections.abc import Mapping, Sequence
import dataclasses
import re
import shlex
from typing import Any

from etils import epath

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.report import values
from perlhf_jax.runs import model_dirs
from perlhf_jax.stages import train_policy
from perlhf_jax.training import metric_writer
from perlhf_jax.training import step_files
from perlhf_jax.training import step_log
from perlhf_jax.training import train_loop

_EVALUATION = 'eval.json'
_KINDS = {
  'train_sft': run_metadata.SFT,
  'train_reward': run_metadata.REWARD,
  'train_dpo': run_metadata.POLICY,
  'train_policy': run_metadata.POLICY,
}
_TRAIN_STEPS = re.compile(
  r'^(?:TRAIN_STEPS|train_loop\.LoopConfig\.train_steps) = (\d{1,12})$',
  re.MULTILINE,
)
# What `evaluate --input` calls a score: a share of right choices.
_SHARES = {
  'score': 'accuracy',
  'standard_error': 'accuracy_standard_error',
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, as far as it has come.

  Attributes:
    path: its MODEL_DIR.
    name: name of the folder.
    records: records of metrics.jsonl.
    samples: records of samples.jsonl.
    evaluation: content of eval.json; empty without.
    summary: content of summary.json; empty without.
    config: content of config.gin; empty without.
    metadata: metadata of the newest step; None without a step.
    notes: what is missing or damaged, as sentences.
  """

  path: epath.Path
  name: str
  records: Sequence[Mapping[str, Any]]
  samples: Sequence[Mapping[str, Any]]
  evaluation: Mapping[str, Any]
  summary: Mapping[str, Any]
  config: str
  metadata: run_metadata.RunMetadata | None
  notes: Sequence[str]

  @property
  def stage(self) -> str | None:
    """The training command, by the configuration; None if it does not tell."""
    for stage in _KINDS:
      if re.search(rf'^{stage}\.{stage}\.', self.config, re.MULTILINE):
        return stage
    return None

  @property
  def objective(self) -> str | None:
    """What was optimized: the objective, or the command before any step."""
    known = None if self.metadata is None else self.metadata.objective
    return known or self.stage

  @property
  def kind(self) -> str | None:
    """`sft`, `reward` or `policy`; None if nothing tells."""
    if self.metadata is not None:
      return self.metadata.kind
    return None if self.stage is None else _KINDS[self.stage]

  def last(self, split: str) -> Mapping[str, Any]:
    """Returns the last record of a split; empty without."""
    records = [each for each in self.records if each.get('split') == split]
    return records[-1] if records else {}


def is_model_dir(path: epath.Path) -> bool:
  """Returns whether a folder looks like a MODEL_DIR."""
  names = metric_writer.FILE_NAME, model_dirs.CONFIG
  return (path / step_files.CHECKPOINTS).is_dir() or any(
    (path / name).is_file() for name in names
  )


def read(path: epath.Path) -> Run:
  """Reads a MODEL_DIR, and changes nothing in it.

  Args:
    path: absolute.

  Raises:
    CheckpointError: a file is a pipe or a device, or too large.
  """
  notes: list[str] = []
  config = _read(path / model_dirs.CONFIG, notes, 'the configuration')
  records = _records(path / metric_writer.FILE_NAME, notes)
  summary = object_if_there(path / train_loop.SUMMARY, notes)
  if summary or not (path / train_loop.SUMMARY).exists():
    notes += _unfinished(config, summary, records)
  if not records:
    notes.append(
      f'There are no records of metrics ({metric_writer.FILE_NAME}).'
    )
  evaluation = object_if_there(path / _EVALUATION, notes)
  if not (path / _EVALUATION).exists():
    notes.append(
      f'There is no {_EVALUATION}; perlhf evaluate '
      f'--checkpoint={shlex.quote(str(path))} writes it.'
    )
  if 'input' in evaluation:
    evaluation = _with_shares(evaluation)
  return Run(
    path=path,
    name=path.name,
    records=records,
    samples=_records(path / train_policy.SAMPLES_FILE, notes),
    evaluation=evaluation,
    summary=summary,
    config=config,
    metadata=_metadata(path, notes),
    notes=[*notes],
  )


def _unfinished(
  config: str,
  summary: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
) -> list[str]:
  """Says that a run has not finished, and how far it is; empty if it has."""
  total = _TRAIN_STEPS.search(config)
  steps = int(total[1]) if total else None
  if summary and (steps is None or train_loop.has_finished(summary, steps)):
    return []
  newest = max((each['step'] for each in records), default=0)
  of_all = f' of {steps:,}' if total else ''
  note = (
    'The run has not finished: its records end at step '
    f'{values.shown("step", newest)}{of_all}'
  )
  if summary:
    ended = values.shown('steps', summary.get('steps'))
    note += f'; {train_loop.SUMMARY} is of its first {ended} steps'
  return [f'{note}.']


def _with_shares(found: Mapping[str, Any]) -> dict[str, Any]:
  """Renames the scores of candidates, which are no rewards, at each level."""
  return {
    (name if isinstance(each, dict) else _SHARES.get(name, name)): (
      _with_shares(each) if isinstance(each, dict) else each
    )
    for name, each in found.items()
  }


def read_object(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    CheckpointError: the file is no plain file, or too large.
    ValueError: it holds something else.
  """
  found = strict_json.loads(plain_files.read(path, errors.CheckpointError))
  if not isinstance(found, dict):
    raise ValueError('it holds no JSON object')
  return found


def object_if_there(path: epath.Path, notes: list[str]) -> dict[str, Any]:
  """Reads a JSON object; empty without the file, and with a note if damaged."""
  if not path.exists():
    return {}
  try:
    return read_object(path)
  except ValueError as error:
    notes.append(f'{path.name} is damaged: {error}.')
    return {}


def _read(path: epath.Path, notes: list[str], what: str) -> str:
  if not path.exists():
    notes.append(f'There is no {path.name}, {what}.')
    return ''
  content = plain_files.read(path, errors.CheckpointError)
  return content.decode('utf-8', 'replace')


def _records(path: epath.Path, notes: list[str]) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  records, damaged = step_log.parse(
    plain_files.read(path, errors.CheckpointError)
  )
  if damaged:
    lines = values.shortened(', '.join(map(str, damaged)), 40)
    notes.append(f'{path.name}: left out damaged lines: {lines}.')
  return [each for each in records if values.number(each['step']) is not None]


def _metadata(
  path: epath.Path, notes: list[str]
) -> run_metadata.RunMetadata | None:
  try:
    step = step_files.newest_step(path)
    if step is not None:
      fields = step_files.read_metadata(step)
      return run_metadata.from_json(fields, str(step))
    notes.append('No step has been saved yet.')
  except errors.CheckpointError as error:
    notes.append(str(error))
  return None

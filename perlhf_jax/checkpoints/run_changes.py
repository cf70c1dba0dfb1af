"""Compares a resumed run with its checkpoint, and refuses or logs changes."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.checkpoints import run_settings
from perlhf_jax.core import errors

# If these change, the weights are useless.
_FIXED = (
  *('kind', 'objective', 'tuning', 'model', 'lora', 'vocabulary'),
  *('base', 'policy.reference'),
)
# These do not affect learning, or their changes are handled separately.
_OTHER = ('format_version', 'made_of', 'module', 'versions', 'changes')
# Fields of `_FIXED` that may change, because the weights stay valid.
_CHANGEABLE = ('model.dropout_rate', 'model.dtype', 'lora.dropout_rate')
# These save memory, and change only the last bits of results.
_FREE = ('model.remat_policy', 'model.attention_block')
_EVAL_DATA = 'eval_data'
# Formats before 4 did not record these.
_RECENT = ('data', _EVAL_DATA, 'settings')
_MOST_SHOWN = 8
# Notes for messages.
_MEANINGS = {
  'data.fingerprint': (
    ' (the fingerprint is of every row and of their order, so rows were '
    'changed, moved, added or left out)'
  ),
  'settings.reward_functions': (
    ' (code is a digest of the file in which the function is written)'
  ),
}
_MISSING = object()


class _Change(NamedTuple):
  """A difference between a step and the run that resumes from it.

  Attributes:
    name: such as `settings.optimizer.learning_rate`.
    old: the value in the step; `_MISSING` if it has none.
    new: the value in the run; `_MISSING` if it has none.
  """

  name: str
  old: Any
  new: Any

  def __str__(self):
    return f'its {self.name} is {_brief(self.old)}, this run has ' + _brief(
      self.new
    )

  @property
  def is_fixed(self) -> bool:
    """Whether no run can resume with this change."""
    if self.name in _CHANGEABLE:
      return False
    return any(
      self.name == name or self.name.startswith(f'{name}.') for name in _FIXED
    )

  @property
  def is_of_library(self) -> bool:
    """Whether only one of two versions of this library has the setting."""
    # An absent object, such as a KL controller, is None, not `_MISSING`.
    return self.name.startswith('settings.') and _MISSING in (
      *(self.old, self.new),
    )


def going_on(
  saved: run_metadata.RunMetadata,
  given: run_metadata.RunMetadata,
  step: epath.Path,
  *,
  accept: bool = False,
) -> run_metadata.RunMetadata:
  """Checks that a run resumes as it began, and records accepted changes.

  Changes of validation data and of library versions are only logged, because
  they hardly affect learning. Checkpoints are compared by content, not by path.

  Args:
    saved: the metadata of the newest step.
    given: the metadata of the run that resumes.
    step: the folder of the newest step.
    accept: whether to accept other data, rewards or settings.

  Returns:
    The metadata of the coming steps: `given`, with all changes so far.

  Raises:
    CheckpointError: the step was written with another configuration or other
      data. The message names old and new values.
  """
  number = int(step.name)
  found = list(
    _changes(run_metadata.to_json(saved), run_metadata.to_json(given))
  )
  lacking = [n for n in _RECENT if getattr(saved, n) is None]
  if lacking:
    logging.warning(
      'Step %d was saved by a version that recorded no fingerprints of data '
      'and settings, so changes since then cannot be detected. From now on '
      'they are recorded.',
      number,
    )
  found = [c for c in found if c.name.partition('.')[0] not in lacking]
  _log([c for c in found if c.is_of_library], 'Settings of another version')
  found = [c for c in found if not c.is_of_library]
  other_eval = [c for c in found if c.name.startswith(_EVAL_DATA)]
  _log([c for c in found if c.name in _FREE], 'Changed since the last start')
  matters = [c for c in found if c.name not in _FREE and c not in other_eval]
  refused = [c for c in matters if c.is_fixed or not accept]
  if refused:
    raise errors.CheckpointError(_refusal(refused, step))
  if other_eval:
    _log(
      other_eval,
      'The validation data has changed, so the metrics of earlier and later '
      'steps, which choose the best checkpoint, are not comparable',
    )
  _log(
    matters,
    f'Going on from step {number} with accepted changes, which the checkpoints '
    'record from now on',
  )
  _log_versions(saved, given)
  record = [
    {
      'step': number,
      **{c.name: [_plain(c.old), _plain(c.new)] for c in matters + other_eval},
    }
  ]
  return dataclasses.replace(
    given,
    changes=[*saved.changes, *(record if matters or other_eval else [])],
  )


def recorded(metadata: run_metadata.RunMetadata) -> Iterator[str]:
  """Yields the accepted changes of a run as text, a line for each time."""
  for record in metadata.changes:
    names = [name for name in record if name != 'step']
    changes = '; '.join(f'{name} {_arrow(record[name])}' for name in names)
    yield f'after step {record.get("step")}: {changes}'


def _changes(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[_Change]:
  for name in {**old, **new}:
    if name not in _OTHER:
      yield from _compare(name, old.get(name), new.get(name))


def _compare(name: str, old: Any, new: Any) -> Iterator[_Change]:
  """Yields the differences of two JSON values."""
  if (
    isinstance(old, Mapping)
    and isinstance(new, Mapping)
    and name not in run_metadata.RECORDED
    and old.get(run_settings.CLASS) == new.get(run_settings.CLASS)
  ):
    for key in {**old, **new}:
      yield from _compare(
        f'{name}.{key}', old.get(key, _MISSING), new.get(key, _MISSING)
      )
  elif not _is_same(old, new):
    yield _Change(name, old, new)


def _is_same(old: Any, new: Any) -> bool:
  """Compares settings; the path of a checkpoint does not matter."""
  if isinstance(old, list) and isinstance(new, list):
    return len(old) == len(new) and all(map(_is_same, old, new))
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    for known in 'fingerprint', 'path':
      # Format 1 has no fingerprint of reward models.
      if known in old and known in new:
        return old[known] == new[known]
  return old == new


def _refusal(changes: Sequence[_Change], step: epath.Path) -> str:
  shown = '; '.join(
    f'{each}{_MEANINGS.get(each.name, "")}' for each in changes[:_MOST_SHOWN]
  )
  more = len(changes) - _MOST_SHOWN
  if more > 0:
    shown += f'; and {more} more'
  advice = (
    'Give another MODEL_DIR, or the configuration that this run started with'
  )
  if any(c.name == 'data.fingerprint' for c in changes):
    advice = (
      'Give another MODEL_DIR, or the configuration and the data that this '
      'run started with'
    )
  if not any(c.is_fixed for c in changes):
    advice += (
      '; or set --gin.ACCEPT_CHANGES=True to go on with the changes, which '
      'the checkpoints then record'
    )
  return (
    f'MODEL_DIR {step.parent.parent} already holds step {step.name} of another '
    f'run: {shown}. {advice}.'
  )


def _log(changes: Sequence[_Change], what: str) -> None:
  if changes:
    lines = (f'{c.name}: {_arrow([c.old, c.new])}' for c in changes)
    logging.warning('%s:\n  %s', what, '\n  '.join(lines))


def _log_versions(saved, given) -> None:
  changed = [
    f'{name} {saved.versions[name]} -> {version}'
    for name, version in given.versions.items()
    if saved.versions.get(name, version) != version
  ]
  if changed:
    logging.warning('Going on with other versions: %s.', ', '.join(changed))


def _arrow(values: Any) -> str:
  # Metadata from elsewhere may hold anything.
  each = values if isinstance(values, list) else [values]
  return ' -> '.join(map(_brief, each))


def _plain(value: Any) -> Any:
  return None if value is _MISSING else value


def _brief(value: Any) -> str:
  text = str(_plain(value))
  return text if len(text) <= 200 else text[:200] + '…'

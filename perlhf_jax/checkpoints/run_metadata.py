"""What every checkpoint says of itself, so that it needs no configuration."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from absl import logging

from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config

# 1 had no module and no versions, and of reward models the path alone; 2 had
# no models that were made of others.
FORMAT_VERSION = 3
SFT = 'sft'
REWARD = 'reward'
POLICY = 'policy'
# What `tuning` may be.
LORA = 'lora'
FULL = 'full'
MERGED = 'merged'
# Of `data_order`.
LENGTH_BUCKETS = 'length_buckets'
# What is named by `recorded_paths`.
_RECORDED = ('base', 'policy.reference', 'policy.reward_checkpoints')


@dataclasses.dataclass(frozen=True)
class RunMetadata:
  """Describes a trained model.

  Attributes:
    kind: `sft`, `reward` or `policy`; None where `made_of` does not tell.
    objective: `sft`, `pairwise`, `pointwise` or the algorithm that tuned a
      policy; None likewise.
    tuning: `lora`, `full`, or `merged`: adapters that are in the weights; None
      likewise.
    model: architecture and numerics.
    lora: the adapters' configuration, None for full tuning.
    vocabulary: the tokenizer.
    base: `{'path', 'relative_path', 'fingerprint'}` of the backbone that is
      frozen, all of it or a part, see `recorded_paths`; None where the
      checkpoint holds every weight.
    task: the SeqIO task or mixture it was trained on; None likewise.
    task_feature_lengths: tokens of `inputs` and `targets`; empty likewise.
    truncate_prompt: which end of a long prompt was kept.
    data_order: what decides which examples a step sees: batch size, seeds, and
      how they are put together by length.
    policy: for policies, what else decides the run: `{'reference': …,
      'reward_checkpoints': […], 'temperature': …, …}`, where the former have
      what `base` has.
    module: the user's module that registers the task, if any.
    versions: of this library and those below it, see `core.versions`.
    made_of: what `perlhf convert` made it of, and where that lay; None of what
      a run saved. It holds every weight, and nothing to go on training from.
  """

  kind: str | None
  objective: str | None
  tuning: str | None
  model: t5_config.T5Config
  lora: lora_lib.LoraConfig | None
  vocabulary: Any
  base: Mapping[str, str] | None
  task: str | None
  task_feature_lengths: Mapping[str, int]
  truncate_prompt: str
  data_order: Mapping[str, Any]
  policy: Mapping[str, Any] | None = None
  module: str | None = None
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  made_of: str | None = None


def to_json(metadata: RunMetadata) -> dict[str, Any]:
  """Returns a JSON object; the inverse of `from_json`."""
  fields = {
    field.name: getattr(metadata, field.name)
    for field in dataclasses.fields(metadata)
  }
  lora = metadata.lora
  return {
    **fields,
    'format_version': FORMAT_VERSION,
    'model': _plain(dataclasses.asdict(metadata.model)),
    'lora': None if lora is None else _plain(dataclasses.asdict(lora)),
    'vocabulary': vocabularies.to_dict(metadata.vocabulary),
    'base': None if metadata.base is None else dict(metadata.base),
    'task_feature_lengths': dict(metadata.task_feature_lengths),
    'data_order': dict(metadata.data_order),
    'policy': None if metadata.policy is None else _plain(metadata.policy),
    'versions': dict(metadata.versions),
  }


def from_json(fields: Mapping[str, Any], where: str) -> RunMetadata:
  """Reads a JSON object that `to_json` made.

  Raises:
    CheckpointError: a newer version of this library wrote it.
  """
  fields = dict(fields)
  version = fields.pop('format_version')
  if version > FORMAT_VERSION:
    raise errors.CheckpointError(
      f'{where} has checkpoint format {version}; this version of perlhf_jax '
      f'reads up to {FORMAT_VERSION}. Upgrade perlhf_jax.'
    )
  if version == 1 and fields['policy'] is not None:
    rewards = fields['policy']['reward_checkpoints']
    fields['policy'] = {
      **fields['policy'],
      'reward_checkpoints': [{'path': path} for path in rewards],
    }
  # Versions that did not say it put no examples together by length.
  fields['data_order'] = {LENGTH_BUCKETS: 0, **fields['data_order']}
  lora = fields.pop('lora')
  return RunMetadata(
    model=pali_config.from_fields(fields.pop('model')),
    lora=None if lora is None else lora_lib.LoraConfig(**lora),
    vocabulary=vocabularies.from_dict(fields.pop('vocabulary')),
    **fields,
  )


def _plain(value: Any) -> Any:
  """Replaces tuples by lists, as JSON would."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  return list(value) if isinstance(value, tuple) else value


def check_same(saved: RunMetadata, given: RunMetadata, where: str) -> None:
  """Makes sure that a run goes on as it began.

  Other versions of libraries are logged, for they hardly change what is learnt.

  Args:
    saved: of the newest step.
    given: of the run that is to go on.
    where: that step, for the message.

  Raises:
    CheckpointError: another configuration wrote the step.
  """
  before, now = dict(_settings(saved)), dict(_settings(given))
  for name in {**before, **now}:
    old, new = before.get(name), now.get(name)
    if not _is_same(old, new):
      raise errors.CheckpointError(
        f'MODEL_DIR already holds {where} of another run: its {name} is '
        f'{_brief(old)}, this run has {_brief(new)}. Give another MODEL_DIR, '
        'or the configuration that began this one.'
      )
  changed = [
    f'{name} {saved.versions[name]} -> {version}'
    for name, version in given.versions.items()
    if saved.versions.get(name, version) != version
  ]
  if changed:
    logging.warning('Going on with other versions: %s.', ', '.join(changed))


def _settings(metadata: RunMetadata) -> Iterator[tuple[str, Any]]:
  """Yields what decides a run, by name: `model.emb_dim`, `policy.kl_beta`."""
  for name, value in to_json(metadata).items():
    if name not in ('format_version', 'made_of', 'module', 'versions'):
      yield from _leaves(name, value)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
  if isinstance(value, Mapping) and name not in _RECORDED:
    for key, part in value.items():
      yield from _leaves(f'{name}.{key}', part)
  else:
    yield name, value


def _is_same(old: Any, new: Any) -> bool:
  """Compares settings; checkpoints are the same wherever they lie."""
  if isinstance(old, list) and isinstance(new, list):
    return len(old) == len(new) and all(map(_is_same, old, new))
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    known = 'fingerprint' if 'fingerprint' in old else 'path'
    return old[known] == new[known]
  return old == new


def _brief(value: Any) -> str:
  text = str(value)
  return text if len(text) <= 200 else text[:200] + '…'

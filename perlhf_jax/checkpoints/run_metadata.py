"""What every checkpoint says of itself, so that it needs no configuration."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config

# 1 had no module and no versions, and of reward models the path alone; 2 had
# no models that were made of others; 3 no data, settings and changes.
FORMAT_VERSION = 4
SFT = 'sft'
REWARD = 'reward'
POLICY = 'policy'
# What `tuning` may be.
LORA = 'lora'
FULL = 'full'
MERGED = 'merged'
# Of `data_order`.
LENGTH_BUCKETS = 'length_buckets'


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
    data: identifies the training examples, see `data_fingerprint`; None where
      nothing tells it, as in formats before 4.
    eval_data: the same of the validation examples.
    settings: of optimizers, losses, rewards and algorithm, see `run_settings`;
      None likewise.
    changes: of each time that the run went on with something else than before,
      `{'step': newest step, name: [before, after], …}`; see `run_changes`.
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
  data: Mapping[str, Any] | None = None
  eval_data: Mapping[str, Any] | None = None
  settings: Mapping[str, Any] | None = None
  changes: Sequence[Mapping[str, Any]] = ()
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
    'changes': [dict(each) for each in metadata.changes],
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

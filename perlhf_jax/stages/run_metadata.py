"""What every checkpoint says of itself, so that it needs no configuration."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config

FORMAT_VERSION = 1
SFT = 'sft'
REWARD = 'reward'
POLICY = 'policy'


@dataclasses.dataclass(frozen=True)
class RunMetadata:
  """Describes a trained model.

  Attributes:
    kind: `sft`, `reward` or `policy`.
    objective: `sft`, `pairwise`, `pointwise` or the algorithm that tuned a
      policy.
    tuning: `lora` or `full`.
    model: architecture and numerics.
    lora: the adapters' configuration, None for full tuning.
    vocabulary: the tokenizer.
    base: `{'path', 'fingerprint'}` of the backbone that is frozen, all of it
      or a part; None where every weight was trained.
    task: the SeqIO task or mixture it was trained on.
    task_feature_lengths: tokens of `inputs` and `targets`.
    truncate_prompt: which end of a long prompt was kept.
    data_order: what decides which examples a step sees: batch size and seed.
    policy: for policies, what else decides the run: `{'reference': {'path',
      'fingerprint'}, 'reward_checkpoints', 'temperature', …}`.
  """

  kind: str
  objective: str
  tuning: str
  model: t5_config.T5Config
  lora: lora_lib.LoraConfig | None
  vocabulary: Any
  base: Mapping[str, str] | None
  task: str
  task_feature_lengths: Mapping[str, int]
  truncate_prompt: str
  data_order: Mapping[str, int]
  policy: Mapping[str, Any] | None = None


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

"""The metadata of checkpoints, so that using one needs no configuration."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Annotated, Any

from perlhf_jax.checkpoints import recorded_paths
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import schemas
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config

# Format 1 had no module and no versions, and only the path of reward models.
# Format 2 had no `made_of`. Format 3 had no data, settings and changes.
FORMAT_VERSION = 4
SFT = 'sft'
REWARD = 'reward'
POLICY = 'policy'
# Values of `tuning`.
LORA = 'lora'
FULL = 'full'
MERGED = 'merged'
# A key of `data_order`.
LENGTH_BUCKETS = 'length_buckets'
_Kind = Annotated[str | None, checks.OneOf(SFT, REWARD, POLICY)]
_Tuning = Annotated[str | None, checks.OneOf(LORA, FULL, MERGED)]
_Count = Annotated[int, checks.Range(least=0, most=10**15)]
_Tokens = Annotated[int, checks.Range(least=1, most=10_000_000)]
_DAMAGED = 'It is damaged; copy the checkpoint again, or use another step.'
# How to read a part of the metadata. `from_json` adds the checkpoint to errors.
_OURS: Mapping[str, Any] = {'error': errors.ConfigError, 'only': True}
# The entries of `policy` that are read again.
_POLICY: Mapping[str, Any] = {
  'reference': Mapping[str, str] | None,
  'reward_checkpoints': list[Mapping[str, str]],
  'reduce': str,
  'temperature': Annotated[float, checks.Range(least=0, most=10**6)],
}
# Fields that name checkpoints with `recorded_paths`.
RECORDED = ('base', 'policy.reference', 'policy.reward_checkpoints')


@dataclasses.dataclass(frozen=True)
class RunMetadata:
  """Describes a trained model.

  A converted checkpoint may lack `kind`, `objective`, `tuning`, `task` and
  `task_feature_lengths`.

  Attributes:
    kind: `sft`, `reward` or `policy`; None if unknown.
    objective: `sft`, `pairwise`, `pointwise` or the algorithm that tuned a
      policy; None if unknown.
    tuning: `lora`, `full`, or `merged` for adapters merged into the weights;
      None if unknown.
    model: architecture and numerics.
    lora: the adapters' configuration, None for full tuning.
    vocabulary: the tokenizer.
    base: `{'path', 'relative_path', 'fingerprint'}` of the backbone that is
      frozen as a whole or in part, see `recorded_paths`; None if the checkpoint
      holds every weight.
    task: the SeqIO task or mixture of the training; None if unknown.
    task_feature_lengths: tokens of `inputs` and `targets`; empty if unknown.
    truncate_prompt: which end of a long prompt was kept.
    data_order: determines the examples of each step: batch size, seeds, and how
      examples are grouped by length.
    policy: further settings of a policy's run: `{'reference': …,
      'reward_checkpoints': […], 'temperature': …, …}`; the first two have the
      entries of `base`.
    module: the user's module that registers the task, if any.
    versions: the versions of this library and its dependencies, see
      `core.versions`.
    data: identifies the training examples, see `data_fingerprint`; None if
      unknown, as in formats before 4.
    eval_data: identifies the validation examples, likewise.
    settings: the settings of optimizers, losses, rewards and algorithm, see
      `run_settings`; None if unknown.
    changes: for each time that the run resumed with changes, `{'step': newest
      step, name: [before, after], …}`; see `run_changes`.
    made_of: what `perlhf convert` or `perlhf average` made this checkpoint of,
      with paths; None for checkpoints of a run. Training cannot resume from
      such a checkpoint.
  """

  kind: _Kind
  objective: str | None
  tuning: _Tuning
  model: t5_config.T5Config
  lora: lora_lib.LoraConfig | None
  vocabulary: Any
  base: Mapping[str, str] | None
  task: str | None
  task_feature_lengths: Mapping[str, _Tokens]
  truncate_prompt: Annotated[str, checks.OneOf('keep_end', 'keep_start')]
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


def from_json(fields: Any, where: str) -> RunMetadata:
  """Reads a JSON object from `to_json`, or from an attacker.

  Checks the type and the bounds of every part, so that callers need not check
  again. Allocates no arrays and imports no modules.

  Args:
    fields: the result of `strict_json.loads`.
    where: the checkpoint, for messages.

  Raises:
    CheckpointError: a newer version of this library wrote the checkpoint, or it
      is damaged.
  """
  source = f'The metadata of {where}'
  with schemas.blamed_on(source, errors.CheckpointError, _DAMAGED):
    fields = _of_current_format(fields, where)
    lora = fields['lora']
    fields |= {
      'model': pali_config.from_fields(fields['model']),
      'lora': None
      if lora is None
      else schemas.make(lora_lib.LoraConfig, lora, 'lora', **_OURS),
      'vocabulary': vocabularies.from_dict(fields['vocabulary']),
    }
    for name in RECORDED:
      _check_recorded(fields, name)
    buckets = fields['data_order'][LENGTH_BUCKETS]
    checks.check(f'data_order.{LENGTH_BUCKETS}', buckets, _Count)
    made = schemas.make(RunMetadata, fields, 'metadata', **_OURS)
    _check_together(made)
  return made


def _of_current_format(fields: Any, where: str) -> dict[str, Any]:
  """Converts fields to the newest format."""
  fields = dict(_mapping(fields, 'it'))
  version = fields.pop('format_version', None)
  checks.check(
    'format_version', version, Annotated[int, checks.Range(least=1, most=10**6)]
  )
  if version > FORMAT_VERSION:
    raise errors.CheckpointError(
      f'{where} has checkpoint format {version}; this version of perlhf_jax '
      f'reads up to {FORMAT_VERSION}. Upgrade perlhf_jax.'
    )
  for name in ('model', 'lora', 'vocabulary', 'base', 'data_order'):
    if name not in fields:
      raise errors.ConfigError(f'it lacks {name!r}.')
  policy = fields.get('policy')
  if policy is not None:
    policy = dict(_mapping(policy, 'policy'))
    if version == 1:
      rewards = policy.get('reward_checkpoints')
      checks.check('policy.reward_checkpoints', rewards, list[str])
      policy['reward_checkpoints'] = [{'path': path} for path in rewards]
    for name, kind in _POLICY.items():
      if name in policy:
        checks.check(f'policy.{name}', policy[name], kind)
  # Versions without this entry did not group examples by length.
  order = {LENGTH_BUCKETS: 0, **_mapping(fields['data_order'], 'data_order')}
  return {**fields, 'policy': policy, 'data_order': order}


def _check_together(metadata: RunMetadata) -> None:
  """Checks that the parts are consistent with each other."""
  told = metadata.objective is not None
  if told and None in (metadata.kind, metadata.tuning):
    raise errors.ConfigError('it has an objective, but lacks kind or tuning.')
  if metadata.tuning == LORA and None in (metadata.lora, metadata.base):
    raise errors.ConfigError(
      "its tuning is 'lora', and it has no lora or base."
    )


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
  checks.check(name, value, Mapping[str, Any])
  return value


def _check_recorded(fields: Mapping[str, Any], name: str) -> None:
  """Checks the records of other checkpoints, which need not exist."""
  value: Any = fields
  for part in name.split('.'):
    value = None if value is None else value.get(part)
  for each in value if isinstance(value, list) else [value]:
    if each is not None:
      recorded_paths.check(each, name)


def _plain(value: Any) -> Any:
  """Replaces tuples by lists, as JSON does."""
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  return list(value) if isinstance(value, tuple) else value

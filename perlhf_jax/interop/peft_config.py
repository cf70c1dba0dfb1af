"""Converts PEFT's `adapter_config.json` of a T5 to and from `LoraConfig`.

PEFT uses the module names of `transformers`. It adapts a module if its name, or
the end of its name after a dot, is in `target_modules`.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import re
from typing import Annotated, Any

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import patterns
from perlhf_jax.core import schemas
from perlhf_jax.interop import hf_names
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config

_ALL_LINEAR = 'all-linear'
# Task types with the function and module names of
# `T5ForConditionalGeneration`.
_TASKS = (None, 'SEQ_2_SEQ_LM', 'FEATURE_EXTRACTION')
# Settings that are read here, or do not change the computation. All others must
# be off.
_READ = frozenset(
  {
    'alpha_pattern',
    'auto_mapping',
    'base_model_name_or_path',
    'bias',
    'eva_config',
    'exclude_modules',
    'inference_mode',
    'init_lora_weights',
    'layers_pattern',
    'lora_alpha',
    'lora_dropout',
    'megatron_core',
    'peft_type',
    'peft_version',
    'qalora_group_size',
    'r',
    'rank_pattern',
    'revision',
    'runtime_config',
    'target_modules',
    'task_type',
    'use_dora',
    'use_rslora',
  }
)
# Other initialisations, such as PiSSA, also change the base.
_INITS = (True, False, 'gaussian', 'eva', 'orthogonal')
_REMEDY = 'Take the file that belongs to the adapter.'
_MOST = 65_536

_Rank = Annotated[int, checks.Range(least=1, most=_MOST)]
_Alpha = Annotated[float, checks.Range(above=0, most=1e6)]
_Targets = str | list[str] | None


@dataclasses.dataclass(frozen=True)
class _File:
  """The fields of `adapter_config.json` that are read, with PEFT's defaults."""

  base_model_name_or_path: str | None = None
  r: _Rank = 8
  lora_alpha: _Alpha = 8
  lora_dropout: Annotated[float, checks.Range(least=0, below=1)] = 0.0
  target_modules: _Targets = None
  exclude_modules: _Targets = None
  rank_pattern: Mapping[str, _Rank] | None = None
  alpha_pattern: Mapping[str, _Alpha] | None = None
  use_rslora: bool | None = False
  use_dora: bool | None = False


@dataclasses.dataclass(frozen=True)
class Adapted:
  """The adapter of one module in PEFT.

  Attributes:
    rank: rank of the update.
    scale: factor on the update.
  """

  rank: int
  scale: float


def modules(config: t5_config.T5Config) -> dict[str, hf_names.Entry]:
  """Returns the dense layers of a T5 by PEFT's names.

  Args:
    config: configuration of the T5; a PaLI's ViT and projection do not count.
  """
  return {
    entry.tensor.removesuffix('.weight'): entry
    for entry in hf_names.entries(config)
    if entry.path.endswith('/kernel')
  }


def to_json(
  lora: lora_lib.LoraConfig,
  adapted: Iterable[str],
  config: t5_config.T5Config,
  base: str,
) -> dict[str, Any]:
  """Makes the contents of an `adapter_config.json`.

  Args:
    lora: rank and scale.
    adapted: PEFT's names of the adapted modules.
    config: configuration of the base model.
    base: directory of the base model or its name on the hub.
  """
  alpha = lora.rank if lora.alpha is None else lora.alpha
  return {
    'alpha_pattern': {},
    'base_model_name_or_path': base,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'init_lora_weights': True,
    'lora_alpha': int(alpha) if alpha == int(alpha) else alpha,
    'lora_dropout': lora.dropout_rate,
    'modules_to_save': None,
    'peft_type': 'LORA',
    'r': lora.rank,
    'rank_pattern': {},
    'target_modules': _targets(set(adapted), modules(config)),
    'task_type': 'SEQ_2_SEQ_LM',
    'use_dora': lora.dora,
    'use_rslora': lora.rs_lora,
  }


def _targets(adapted: set[str], all_modules: Iterable[str]) -> list[str]:
  """Shortens names to an end if all modules with that end are adapted."""
  ends: dict[str, set[str]] = {}
  for name in all_modules:
    ends.setdefault(name.rpartition('.')[2], set()).add(name)
  targets = set(adapted)
  for end, names in ends.items():
    if names <= adapted:
      targets = targets - names | {end}
  return sorted(targets)


def from_json(
  raw: Mapping[str, Any], config: t5_config.T5Config, source: str
) -> tuple[lora_lib.LoraConfig, dict[str, Adapted]]:
  """Translates the contents of an `adapter_config.json`.

  Args:
    raw: the parsed file.
    config: configuration of the base model.
    source: path of the file, for messages.

  Returns:
    A `LoraConfig` with the highest rank, and the adapted modules by PEFT's
    names. Their scales differ from the configuration's if `rank_pattern` or
    `alpha_pattern` say so.

  Raises:
    CheckpointError: the adapter is not LoRA on a T5, or computes something that
      our adapters do not.
  """
  _check_kind(raw, source)
  file = schemas.make(_File, raw, source, remedy=_REMEDY)
  rank, alpha, rs_lora = file.r, file.lora_alpha, bool(file.use_rslora)

  def scale(alpha, rank):
    return alpha / (math.sqrt(rank) if rs_lora else rank)

  adapted = {}
  with schemas.blamed_on(source, errors.CheckpointError, _REMEDY):
    for name in _matches(file, modules(config), source):
      own_rank = _of_pattern(file.rank_pattern, name, rank)
      own_alpha = _of_pattern(file.alpha_pattern, name, alpha)
      adapted[name] = Adapted(own_rank, scale(own_alpha, own_rank))
  highest = max(module.rank for module in adapted.values())
  if highest != rank:
    # The scale of the modules that no pattern matches.
    alpha = scale(alpha, rank) * (math.sqrt(highest) if rs_lora else highest)
  paths = [modules(config)[name].path for name in adapted]
  lora = lora_lib.LoraConfig(
    rank=highest,
    alpha=float(alpha),
    dropout_rate=float(file.lora_dropout),
    rs_lora=rs_lora,
    target_modules=_patterns(paths, config),
    dora=bool(file.use_dora),
  )
  return lora, adapted


def _check_kind(raw: Mapping[str, Any], source: str) -> None:
  if raw.get('peft_type') != 'LORA':
    raise errors.CheckpointError(
      f'{source}: peft_type is {checks.shown(raw.get("peft_type"))}; only '
      'LORA is supported.'
    )
  if raw.get('task_type') not in _TASKS:
    raise errors.CheckpointError(
      f'{source}: task_type is {raw["task_type"]!r}; supported is '
      'SEQ_2_SEQ_LM, whose encoder reads the prompt and whose decoder the '
      'response. Train the adapter so, or merge it with PEFT.'
    )
  if raw.get('bias', 'none') != 'none':
    raise errors.CheckpointError(
      f"{source}: bias is {raw['bias']!r}; only 'none' is supported, because "
      'a T5 has no biases.'
    )
  if raw.get('init_lora_weights', True) not in _INITS:
    raise errors.CheckpointError(
      f'{source}: init_lora_weights is {raw["init_lora_weights"]!r}, which '
      'changes the base too. Convert the adapter to plain LoRA first (PEFT: '
      'save_pretrained with path_initial_model_for_weight_conversion).'
    )
  others = sorted(
    key for key, value in raw.items() if value and key not in _READ
  )
  if others:
    raise errors.CheckpointError(
      f'{source}: {", ".join(others)} {"is" if len(others) == 1 else "are"} '
      'set, which perlhf_jax does not support. Merge the adapter with PEFT '
      '(merge_and_unload, save_pretrained) and give the merged directory.'
    )


def _of_pattern(
  patterns_: Mapping[str, Any] | None, module: str, default: Any
) -> Any:
  """Returns the value of the first pattern that ends a module's name."""
  for pattern, value in (patterns_ or {}).items():
    if patterns.fullmatch(rf'(.*\.)?({pattern})', module):
      return value
  return default


def _matches(file: _File, names: Iterable[str], source: str) -> list[str]:
  targets = file.target_modules
  if not targets:
    raise errors.CheckpointError(
      f'{source}: target_modules is {targets!r}; it must name the adapted '
      f'modules. {_REMEDY}'
    )
  excluded = file.exclude_modules or []
  found = [
    name
    for name in names
    if _is_target(name, targets) and not _is_target(name, excluded)
  ]
  if not found:
    raise errors.CheckpointError(
      f'{source}: target_modules is {checks.shown(targets)}, which matches no '
      f'dense layer of this T5; it has {", ".join(list(names)[:4])} and '
      'others. Give the base that the adapter was trained on.'
    )
  return found


def _is_target(name: str, targets: str | list[str]) -> bool:
  if targets == _ALL_LINEAR:
    return name != hf_names.LM_HEAD.removesuffix('.weight')
  if isinstance(targets, str):
    return patterns.fullmatch(targets, name)
  return any(
    name == target or name.endswith(f'.{target}') for target in targets
  )


def _patterns(
  kernels: Iterable[str], config: t5_config.T5Config
) -> tuple[str, ...]:
  """Returns patterns of module paths, if possible valid for stacked layers.

  Args:
    kernels: paths of the adapted kernels.
    config: configuration of the base model.
  """
  adapted = {path.removesuffix('/kernel') for path in kernels}
  everywhere = {
    entry.path.removesuffix('/kernel') for entry in modules(config).values()
  }
  usual = re.compile('|'.join(lora_lib.ATTENTION_PROJECTIONS))
  if adapted == set(filter(usual.fullmatch, everywhere)):
    return lora_lib.ATTENTION_PROJECTIONS
  patterns = set()
  for path in adapted:
    pattern = re.sub(r'/layers_\d+/', r'/layers(_\\d+)?/', path)
    alike = set(filter(re.compile(pattern).fullmatch, everywhere))
    patterns.add(pattern if alike <= adapted else path)
  return tuple(sorted(patterns))

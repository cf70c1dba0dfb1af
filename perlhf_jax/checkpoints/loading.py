"""Loads models of every format, together with the base that they need.

Weights are read directly onto the mesh: no host ever holds a whole model.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
from typing import Any

from absl import logging
from etils import epath
import jax

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import recorded_paths
from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.checkpoints.formats import registry
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.interop import remote_files
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import merge
from perlhf_jax.models import pali_config
from perlhf_jax.models import tuned_params
from perlhf_jax.training import fingerprint as fingerprint_lib
from perlhf_jax.training import finite
from perlhf_jax.training import layer_layout
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

# How a user gives the path of a base.
_MOVED = '--base_checkpoint=DIR (BASE_CHECKPOINT_PATH in gin)'
# The longest chain of bases: adapters on adapters on a whole model.
_MAX_CHAIN = 8
# Largest |Δlogit| that merging SFT adapters may make, in float32.
_TOLERANCE = 1e-3


def load(
  path: str,
  mesh: partitioning.LogicalMesh,
  base_checkpoint: str | None = None,
  shared: loaded_model.LoadedModel | None = None,
  vocabulary: Any = None,
) -> loaded_model.LoadedModel:
  """Loads a checkpoint of any registered format, and its base if it needs one.

  Args:
    path: a MODEL_DIR (its newest step), MODEL_DIR/checkpoints/<step or 'best'>,
      or a directory of any registered format.
    mesh: where to put the weights.
    base_checkpoint: the path of the base, if it is not where the adapter
      records it.
    shared: a model that is loaded already. An adapter that was trained on it
      shares its `params` (None if it has none) instead of reading them again.
    vocabulary: the tokenizer, if the checkpoint has none.

  Raises:
    CheckpointError: the checkpoint cannot be used, a weight is NaN or infinite,
      the base of an adapter is missing, or there is no vocabulary.
  """
  loaded = _load(path, mesh, base_checkpoint, shared)
  return _with_vocabulary(loaded, path, vocabulary)


def open_for_writing(
  path: str,
  mesh: partitioning.LogicalMesh,
  base_checkpoint: str | None = None,
  vocabulary: Any = None,
) -> loaded_model.LoadedModel:
  """Loads as `load` does, but leaves whole models in their files if it can.

  Such models have no fingerprint, which would need every weight to be read.
  """
  format_, peeked = _peek(path, base_checkpoint)
  if isinstance(format_, format_lib.WeightsFormat):
    loaded = format_.open(peeked)
  else:
    loaded = _load(path, mesh, base_checkpoint)
  return _with_vocabulary(loaded, path, vocabulary)


def _with_vocabulary(loaded, path, vocabulary) -> loaded_model.LoadedModel:
  if loaded.vocabulary is not None:
    return loaded
  if vocabulary is None:
    raise errors.CheckpointError(
      f'{path} is {loaded}, which holds no vocabulary. Convert it to a '
      f'checkpoint that holds one: perlhf convert --to=perlhf --source={path} '
      '--target=DIR --vocabulary=spiece.model (or --vocabulary=byte).'
    )
  return dataclasses.replace(loaded, vocabulary=vocabulary)


def _load(
  path, mesh, base_checkpoint=None, shared=None, chain=()
) -> loaded_model.LoadedModel:
  """Loads a model, perhaps without a vocabulary.

  Args:
    path: see `load`.
    mesh: see `load`.
    base_checkpoint: see `load`.
    shared: see `load`.
    chain: the paths of the models for which this one is a base.
  """
  with remote_files.explained(path):
    settled = registry.find(path).settle(path)
  format_, peeked = _peek(settled, base_checkpoint, chain)
  loaded = format_.load(peeked, mesh)
  if loaded.base is not None:
    # Without adapters, the frozen weights are copied from the base, so it needs
    # `params`.
    can_share = shared is not None and (
      loaded.lora is not None or shared.params is not None
    )
    if can_share and shared.fingerprint == loaded.base.get('fingerprint'):
      base = shared
    else:
      what = 'checkpoint' if loaded.lora is None else 'adapter'
      base = load_recorded(
        *(loaded.base, f'The {what}', loaded.path, 'base'),
        *(mesh, base_checkpoint),
        chain=_longer(chain, path),
      )
    loaded = dataclasses.replace(
      _put_on(loaded, base, mesh),
      # A shared backbone may have no path.
      base={**loaded.base, 'path': base.path or loaded.base['path']},
      base_path=base_checkpoint,
    )
  return _with_fingerprints(loaded)


def peek(
  path: str, base_checkpoint: str | None = None
) -> loaded_model.LoadedModel:
  """Reads the description of a checkpoint, without its weights.

  Args:
    path: see `load`.
    base_checkpoint: see `load`.

  Raises:
    CheckpointError: the checkpoint cannot be used, or adapters need a base for
      their architecture and it is missing.
  """
  return _peek(path, base_checkpoint)[1]


def _longer(chain: tuple[str, ...], path: str) -> tuple[str, ...]:
  """Returns a chain of bases with one more path.

  Raises:
    CheckpointError: the path is in the chain already, or the chain is too long.
      Else one checkpoint could keep this process busy forever.
  """
  here = step_files.absolute(path)
  longer = (*chain, str(here if '://' in path else here.resolve()))
  if longer[-1] in chain:
    raise errors.CheckpointError(
      f'{path} names itself as its base: {" -> ".join(longer)}.'
    )
  if len(longer) > _MAX_CHAIN:
    raise errors.CheckpointError(
      f'{path} ends a chain of {len(chain)} bases; a chain has at most '
      f'{_MAX_CHAIN}.'
    )
  return longer


def _peek(
  path, base_checkpoint, chain=()
) -> tuple[format_lib.ModelFormat, loaded_model.LoadedModel]:
  chain = _longer(chain, path)
  format_ = registry.find(path)
  peeked = format_.peek(path)
  if not isinstance(format_, format_lib.AdapterFormat):
    return format_, peeked
  place = base_checkpoint or peeked.base['path']
  if not place:
    raise errors.CheckpointError(
      f'The adapter {path} names no base; give its path with {_MOVED}.'
    )
  with _explained(peeked.base, 'The adapter', path, 'base'):
    base = _peek(place, None, chain)[1]
  try:
    return format_, format_.on_base(peeked, base)
  except errors.CheckpointError as error:
    raise errors.CheckpointError(
      f'The adapter {path} does not fit the base {place}: {error}'
    ) from error


def _put_on(loaded, base, mesh) -> loaded_model.LoadedModel:
  """Completes trained weights with the base that they were trained on."""
  config = loaded.config
  base = base.at_image_size(config.image_size, mesh)
  if loaded.lora is None:
    _, kept = tuned_params.split(
      base.in_layout_of(config, mesh), config, lora=False
    )
    params = tree_paths.overlay(kept, loaded.params)
    return dataclasses.replace(loaded, params=params)
  return dataclasses.replace(
    loaded,
    config=base.config,
    vocabulary=loaded.vocabulary or base.vocabulary,
    params=base.params,
    backbone_fingerprint=base.fingerprint,
  )


def _with_fingerprints(loaded) -> loaded_model.LoadedModel:
  """Sets the fingerprints of the base and of the whole model.

  The fingerprint of the whole combines the parts' fingerprints, because the
  last bits of merged weights depend on the machine.

  Raises:
    CheckpointError: a weight is NaN or infinite.
  """
  where = loaded.path
  backbone = loaded.backbone_fingerprint
  if backbone is None:
    backbone = _identify(loaded.params, where)
  parts = [backbone]
  if loaded.lora is not None:
    parts += [_identify(loaded.lora, where), repr(loaded.lora_config.scale)]
  parts += [
    _identify(tree, where) for tree in (loaded.tuned, loaded.heads) if tree
  ]
  return dataclasses.replace(
    loaded,
    backbone_fingerprint=backbone,
    fingerprint=backbone if len(parts) == 1 else _combine(parts),
  )


def _identify(params: Mapping[str, Any], where: str) -> str:
  """Returns the fingerprint of weights, and checks that they are finite."""
  content = fingerprint_lib.read(params)
  finite.check(content.not_finite, str(where))
  return content.fingerprint


def load_merged(
  path: str,
  mesh: partitioning.LogicalMesh,
  base_checkpoint: str | None = None,
) -> loaded_model.LoadedModel:
  """Loads an initial language model, with its adapters merged.

  The vocabulary is None if the format has none.

  Args:
    path: see `load`.
    mesh: where to put the weights.
    base_checkpoint: see `load`.

  Raises:
    CheckpointError: see `load`; or the checkpoint is a reward model.
  """
  return _load_merged(path, mesh, base_checkpoint)


def _load_merged(
  path, mesh, base_checkpoint=None, chain=()
) -> loaded_model.LoadedModel:
  loaded = _load(path, mesh, base_checkpoint, chain=chain)
  check_language_model(loaded, path)
  return merged(loaded, mesh)


def check_language_model(loaded: loaded_model.LoadedModel, path: str) -> None:
  """Raises a CheckpointError if a stage cannot start from a model.

  Args:
    loaded: the model, with or without weights.
    path: the path that the user gave.
  """
  if loaded.is_reward_model:
    raise errors.CheckpointError(
      f'{path} is a reward model. A stage starts from a language model: give '
      'an SFT checkpoint, or a directory of any format that perlhf inspect '
      'knows, as INITIAL_CHECKPOINT_PATH.'
    )


def merged(
  loaded: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
) -> loaded_model.LoadedModel:
  """Merges the adapters of a model into its `params`.

  Args:
    loaded: the result of `load`; returned unchanged if it has no adapters.
    mesh: where its weights are.

  Raises:
    CheckpointError: merging changes the logits by more than 1e-3.
  """
  if loaded.lora is None:
    return loaded
  # The layout of training, whose names target_modules may contain.
  config = dataclasses.replace(loaded.trained_config, dtype='float32')
  adapters = lora_lib.resolve(
    loaded.lora_config, encoder_decoder.dense_module_paths(config)
  )
  params = tree_paths.overlay(
    loaded.in_layout_of(config, mesh),
    layer_layout.to_layout(loaded.tuned, config.scan_layers),
  )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
  with partitioning.use_mesh(mesh):
    params, report = merge.merge_and_check(
      encoder_decoder.make_model(config, adapters),
      params,
      layer_layout.to_layout(loaded.lora, config.scan_layers),
      tolerance=_TOLERANCE,
      shardings=shardings,
    )
  logging.info(
    'Merged the adapters of %s into their base: logits change by at most %.2g.',
    loaded.path,
    report.max_logit_difference,
  )
  return dataclasses.replace(
    loaded,
    config=dataclasses.replace(loaded.config, scan_layers=config.scan_layers),
    params=params,
    lora=None,
    lora_config=None,
    tuned={},
    base=None,
    backbone_fingerprint=loaded.fingerprint,
  )


def with_vit(
  loaded: loaded_model.LoadedModel, path: str, mesh: partitioning.LogicalMesh
) -> loaded_model.LoadedModel:
  """Adds a ViT from another directory to a T5.

  Args:
    loaded: the T5, without adapters.
    path: the path of the ViT, such as a SigLIP directory.
    mesh: where to put the weights.

  Raises:
    CheckpointError: the model has a ViT already, or `path` has none.
  """
  config = config_with_vit(loaded, path)
  # SigLIP's blocks are unrolled, even if the T5's layers are scanned.
  unrolled = dataclasses.replace(config, scan_layers=False)
  shardings = loaded_model.params_shardings(unrolled, mesh)['vit']
  vit = registry.find(path, format_lib.VitFormat).load_params(
    path, config.vit, format_lib.onto_mesh(shardings)
  )
  parts = loaded.fingerprint, _identify({'vit': vit}, path)
  vit = layer_layout.to_layout(
    {'vit': vit},
    config.scan_layers,
    loaded_model.params_shardings(config, mesh),
  )
  fingerprint = _combine(parts)
  return dataclasses.replace(
    loaded,
    config=config,
    params={**loaded.params, **vit},
    vit_path=path,
    backbone_fingerprint=fingerprint,
    fingerprint=fingerprint,
  )


def config_with_vit(
  loaded: loaded_model.LoadedModel, path: str
) -> pali_config.PaliConfig:
  """Returns the architecture of a T5 with a directory's ViT.

  Args:
    loaded: the T5, with or without weights.
    path: the path of the ViT.

  Raises:
    CheckpointError: the model has a ViT already, or `path` has none.
  """
  vit = registry.find(path, format_lib.VitFormat).load_config(path)
  return pali_config.in_front_of(loaded.config, vit, loaded.path)


def _combine(parts: Sequence[str]) -> str:
  """Combines the fingerprints of a model's parts into one."""
  return hashlib.sha256('|'.join(parts).encode()).hexdigest()[:16]


def load_recorded(
  recorded: Mapping[str, str],
  owner: str,
  step: str,
  role: str,
  mesh: partitioning.LogicalMesh,
  moved_to: str | None = None,
  chain: tuple[str, ...] = (),
) -> loaded_model.LoadedModel:
  """Loads a model that a checkpoint records by path and fingerprint.

  Args:
    recorded: the result of `LoadedModel.describe`.
    owner: a name of the checkpoint that records the model, for messages.
    step: the step folder of that checkpoint.
    role: the role of the model in that checkpoint, for messages.
    mesh: where to put the weights.
    moved_to: the path of the model now; None for the recorded paths.
    chain: the paths of the models for which this one is a base.

  Raises:
    CheckpointError: the model is missing, its fingerprint has changed, or its
      own base is in `chain`.
  """
  model_dir = step_files.model_dir_of(epath.Path(step))

  def also(name):
    if name not in recorded:
      return None
    return recorded_paths.candidates(recorded, model_dir, name)[0]

  base_path = also(loaded_model.BASE_PATH)
  vit_path = also(loaded_model.VIT_PATH)

  def load(path):
    base = _load_merged(path, mesh, base_path, chain)
    return base if vit_path is None else with_vit(base, vit_path, mesh)

  with _explained(recorded, owner, step, role):
    return recorded_paths.load(
      recorded,
      [moved_to]
      if moved_to
      else recorded_paths.candidates(recorded, model_dir),
      load,
      lambda base: base.fingerprint,
    )


@contextlib.contextmanager
def _explained(recorded, owner, step, role) -> Iterator[None]:
  """Adds to an error which checkpoint needs the model that cannot be loaded."""
  try:
    yield
  except errors.CheckpointError as error:
    fingerprint = recorded.get('fingerprint')
    known = '' if fingerprint is None else f' (fingerprint {fingerprint})'
    advice = f' If the {role} was moved, give its new path with {_MOVED}.'
    # A base of a base says it already.
    reason = str(error).removesuffix(advice)
    raise errors.CheckpointError(
      f'{owner} {step} needs its {role} {recorded["path"]}{known}, which '
      f'cannot be loaded: {reason}{advice}'
    ) from error

"""Describes a checkpoint, and verifies it."""

from collections.abc import Iterator
from typing import Any

from etils import epath
import jax

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import run_changes
from perlhf_jax.checkpoints import verification
from perlhf_jax.checkpoints.formats import registry
from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.core import strict_json
from perlhf_jax.core import tree_paths
from perlhf_jax.models import encoder_decoder
from perlhf_jax.training import step_files

# Files of MODEL_DIR with the metrics of a run.
_FIGURES = ('summary.json', 'eval.json')


def inspect_checkpoint(
  *,
  checkpoint: str,
  base_checkpoint: str | None = None,
  verify: bool = False,
) -> None:
  """Prints format, model, adapters, base, accepted changes, metrics and size.

  Weights are read only to verify them.

  Args:
    checkpoint: a MODEL_DIR, one of its steps, or a directory: Hugging Face T5,
      a PaLI's parts, PEFT, T5X, or another registered format.
    base_checkpoint: path of an adapter's base, if it is not where the adapter
      records it.
    verify: whether to read every file of a MODEL_DIR, or of a step, and report
      damaged ones.

  Raises:
    CheckpointError: the checkpoint cannot be used, or is damaged.
    ConfigError: the format has no digests to verify.
  """
  if verify:
    _verify(checkpoint)
  format_ = registry.find(checkpoint)
  peeked = loading.peek(checkpoint, base_checkpoint)
  for name, value in _lines(peeked, format_.name):
    print(f'{name + ":":12} {value}')


def _verify(path: str) -> None:
  damaged = []
  for name, text, is_damaged in verification.verify(path):
    print(f'{name + ":":12} {text}')
    if is_damaged:
      damaged.append(name)
  if damaged:
    raise errors.CheckpointError(
      f'Damaged in {path}: {", ".join(damaged)}. Training and the commands '
      'that read it use the newest intact step.'
    )


def _lines(
  peeked: loaded_model.LoadedModel, format_name: str
) -> Iterator[tuple[str, str]]:
  config, metadata = peeked.config, peeked.metadata
  yield 'format', f'{format_name}, {peeked}'
  yield 'path', str(peeked.path)
  family = type(config).__name__.removesuffix('Config')
  yield (
    'family',
    (
      f'{family}, {config.num_encoder_layers} + {config.num_decoder_layers} '
      f'layers of width {config.emb_dim}, vocabulary of {config.vocab_size:,}'
    ),
  )
  params = jax.eval_shape(
    lambda: encoder_decoder.init_variables(
      encoder_decoder.make_model(config), jax.random.key(0)
    )
  )['params']
  yield 'parameters', f'{tree_paths.count_parameters(params):,}'
  yield 'computes in', config.dtype
  lora = peeked.lora_config
  if lora is not None:
    yield 'adapters', lora.title
  if peeked.base is not None:
    known = peeked.base.get('fingerprint')
    yield 'base', peeked.base['path'] + (f' ({known})' if known else '')
  if metadata is not None and metadata.made_of is not None:
    yield 'made of', metadata.made_of
  if metadata is not None and metadata.task is not None:
    lengths = ', '.join(f'{n} {v}' for n, v in peeked.lengths.items())
    yield 'trained on', f'{metadata.task}; tokens at most: {lengths}'
  if metadata is not None:
    yield from (('changed', text) for text in run_changes.recorded(metadata))
    versions = ', '.join(f'{n} {v}' for n, v in metadata.versions.items())
    yield 'written by', versions
    yield from _figures(step_files.model_dir_of(epath.Path(peeked.path)))
  sizes = list(_sizes(epath.Path(peeked.path)))
  yield 'size', f'{sum(sizes) / 2**20:,.1f} MiB in {len(sizes)} files'


def _sizes(folder: epath.Path) -> Iterator[int]:
  for entry in folder.iterdir():
    if entry.is_dir():
      yield from _sizes(entry)
    else:
      yield entry.stat().length


def _figures(model_dir: epath.Path) -> Iterator[tuple[str, str]]:
  for name in _FIGURES:
    file = model_dir / name
    if not file.exists():
      continue
    try:
      content = plain_files.read(file, errors.CheckpointError)
      text = strict_json.dumps(_short(strict_json.loads(content)))
    except (OSError, ValueError) as error:
      text = f'damaged: {error}'
    yield name, text


def _short(figures: Any) -> Any:
  """Leaves out what would fill the screen: samples, and bins for plots."""
  if not isinstance(figures, dict):
    return figures
  return {
    name: value
    for name, value in figures.items()
    if not isinstance(value, list | dict)
  }

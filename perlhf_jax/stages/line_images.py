"""Images of the lines that `score` and `generate` read."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.core import errors
from perlhf_jax.data import images
from perlhf_jax.models import t5_config


def read(
  loaded: loaded_model.LoadedModel,
  rows: Sequence[Mapping[str, Any]],
  path: str,
) -> tuple[list[list[str]], images.ImageSpec | None]:
  """Finds the images of lines and makes sure that a model can read them.

  A line's `"image"` is a path, relative to the folder of the file, a list of
  paths, or null for a prompt without.

  Args:
    loaded: the model, with or without weights.
    rows: the lines, in their order from the first on.
    path: their file.

  Returns:
    Paths of the images of each line, and how they are decoded; None for a
    model that reads text alone.

  Raises:
    DataError: a line has no image, too many, one that cannot be decoded, or
      one that the model does not read; the message names file and line.
  """
  config, lengths = loaded.config, loaded.lengths
  spec = None
  if config.image_size is not None:
    spec = images.ImageSpec(config.image_size, lengths.get('images', 1))
  folder = epath.Path(path).parent
  found = []
  for number, row in enumerate(rows, start=1):
    where = f'{path}:{number}'
    given = _given(row, where)
    if spec is None and given:
      raise errors.DataError(
        f'{where} has an image, and the checkpoint reads text alone; give a '
        'PaLI, or leave out "image".'
      )
    if 'images' in lengths and 'image' not in row:
      raise errors.DataError(
        f'{where} has no "image", and the checkpoint was trained on prompts '
        'with images; give a path, or null for a prompt without.'
      )
    if spec is not None and len(given) > spec.count:
      raise errors.DataError(
        f'{where} has {len(given)} images; the checkpoint reads at most '
        f'{spec.count}.'
      )
    found.append([str(folder / each) for each in given])
  _check(found, path)
  return found, spec


def num_tokens(
  config: t5_config.T5Config, spec: images.ImageSpec | None
) -> int:
  """Returns how many tokens of images stand before those of a prompt."""
  return 0 if spec is None else spec.count * config.vit.num_tokens


def _given(row: Mapping[str, Any], where: str) -> list[str]:
  """What a line says of its images."""
  given = row.get('image')
  if given is None:
    return []
  several = [given] if isinstance(given, str) else given
  if isinstance(several, list) and all(
    isinstance(each, str) and each for each in several
  ):
    return several
  raise errors.DataError(
    f'{where}: "image" is {given!r}; it must be the path of a PNG or JPEG, a '
    'list of such paths, or null.'
  )


def _check(found: Sequence[Sequence[str]], path: str) -> None:
  """Decodes all images once."""
  distinct = dict.fromkeys(image for row in found for image in row)
  problems = images.find_problems(list(distinct))
  for number, row in enumerate(found, start=1):
    for image in row:
      if image in problems:
        raise errors.DataError(f'{path}:{number}: {problems[image]}.')

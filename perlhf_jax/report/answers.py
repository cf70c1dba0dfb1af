"""Responses to the same prompts, before and after, with scores and images."""

import base64
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
import re
from typing import Any

from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.core import plain_files
from perlhf_jax.data import image_headers
from perlhf_jax.report import page
from perlhf_jax.report import run_files
from perlhf_jax.report import values
from perlhf_jax.stages import sample_images

# Bounds of a page.
MAX_SAMPLES = 12
MAX_TEXT = 1500
MAX_IMAGES = 24
MAX_IMAGE_BYTES = 512 * 1024
_MAX_REFERENCES = 5
_MAX_PIXELS = 2**20
# Figures of a response, in short.
_SCORES = {
  'judge_score': "judge's score",
  'score': 'score',
  'kl_k1': 'KL',
  'response_length': 'tokens',
}

Record = Mapping[str, Any]


def before_and_after(run: run_files.Run) -> list[page.Block]:
  """Shows the first and the last recorded responses of a policy's training."""
  if not run.samples:
    return []
  first, last = run.samples[0]['step'], run.samples[-1]['step']
  steps = list(dict.fromkeys((first, last)))
  columns = {
    f'step {values.shown("step", step)}': [
      each for each in run.samples if each['step'] == step
    ]
    for step in steps
  }
  return _side_by_side(columns, [run.path])


def of_evaluations(runs: Sequence[run_files.Run]) -> list[page.Block]:
  """Shows the responses in the eval.json of several runs, prompt by prompt."""
  columns = {}
  for run in runs:
    samples = run.evaluation.get('samples')
    if isinstance(samples, list) and samples:
      columns[run.name] = [x for x in samples if isinstance(x, dict)]
  return _side_by_side(columns, [run.path for run in runs])


def _side_by_side(
  columns: Mapping[str, Sequence[Record]], folders: Sequence[epath.Path]
) -> list[page.Block]:
  """Puts responses to one prompt, with the same images, together.

  Args:
    columns: records by who responded; the first has the prompts.
    folders: where images may be.
  """
  if not columns:
    return []
  by_key = {
    label: {key: each for each, keys in _keyed(records) for key in keys}
    for label, records in columns.items()
  }
  pictures = _Pictures(folders)
  samples = []
  first = [*_keyed(next(iter(columns.values())))]
  for record, keys in first[:MAX_SAMPLES]:
    given = {
      label: match
      for label, found in by_key.items()
      if (match := _match(record, keys, found)) is not None
    }
    # The earliest record may be of a version that wrote less.
    whole = {**record}
    for each in given.values():
      whole = {**each, **whole}
    samples.append(
      page.Sample(
        values.shortened(record.get('prompt', ''), MAX_TEXT),
        [_answer(label, each) for label, each in given.items()],
        _references(whole),
        pictures.of(whole),
      )
    )
  if not samples:
    return []
  notes = []
  if len(first) > len(samples):
    notes.append(f'The first {len(samples)} of {len(first):,} are shown.')
  if pictures.left_out:
    notes.append(
      f'{pictures.left_out:,} images are left out: a page holds {MAX_IMAGES} '
      f'small PNG files of {sample_images.FOLDER} at most.'
    )
  blocks = [page.Samples(samples), page.Text(' '.join(notes))]
  return blocks if notes else blocks[:1]


def _keyed(
  records: Sequence[Record],
) -> Iterator[tuple[Record, tuple[Hashable, Hashable]]]:
  """Yields records with two keys: by prompt and images, and by prompt alone.

  Both keys count how often the same came before.
  """
  counts: Counter[Hashable] = Counter()
  for each in records:
    prompt = str(each.get('prompt'))
    exact, loose = (prompt, repr(each.get('images'))), (prompt,)
    counts.update((exact, loose))
    yield each, ((*exact, counts[exact]), (*loose, counts[loose]))


def _match(
  record: Record,
  keys: tuple[Hashable, Hashable],
  found: Mapping[Hashable, Record],
) -> Record | None:
  """Finds who answered the same; by prompt alone if one names no images."""
  exact, loose = (found.get(key) for key in keys)
  if exact is None and loose is not None:
    # Earlier versions named none.
    is_vague = not (record.get('images') and loose.get('images'))
    return loose if is_vague else None
  return exact


def _answer(label: str, record: Record) -> page.Answer:
  scores = [
    f'{title} {values.shown(name, record[name])}'
    for name, title in _SCORES.items()
    if values.number(record.get(name)) is not None
  ]
  text = values.shortened(record.get('response', ''), MAX_TEXT)
  return page.Answer(label, text, ', '.join(scores))


def _references(record: Record) -> list[str]:
  given = record.get('references')
  given = given[:_MAX_REFERENCES] if isinstance(given, list) else []
  return list(dict.fromkeys(values.shortened(each, 200) for each in given))


class _Pictures:
  """Embeds images that a run wrote beside its records, up to a number.

  Attributes:
    left_out: how many were not embedded.
  """

  def __init__(self, folders: Sequence[epath.Path]):
    self._folders = folders
    self.left_out = 0
    self._left = MAX_IMAGES

  def of(self, record: Record) -> list[str]:
    """Returns the images of a record as data URIs."""
    names = record.get('images')
    found = []
    for name in names if isinstance(names, list) else []:
      content = self._read(name) if self._left else None
      if content is None:
        self.left_out += 1
      else:
        self._left -= 1
        encoded = base64.b64encode(content).decode()
        found.append(f'data:image/png;base64,{encoded}')
    return found

  def _read(self, name: Any) -> bytes | None:
    """Reads a small PNG; None for anything else."""
    # A record of somebody else may name any file.
    if not isinstance(name, str) or not re.fullmatch(
      sample_images.PATTERN, name
    ):
      return None
    for folder in self._folders:
      try:
        content = plain_files.read(
          folder / name, errors.DataError, MAX_IMAGE_BYTES
        )
      except (OSError, errors.DataError):
        continue
      size = image_headers.size_of(content)
      if content.startswith(image_headers.SIGNATURES[0]) and size is not None:
        return content if size[0] * size[1] <= _MAX_PIXELS else None
    return None

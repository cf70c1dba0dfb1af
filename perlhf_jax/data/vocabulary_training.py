"""Trains a SentencePiece vocabulary on the text of a task.

A model that is trained from random weights does not need a vocabulary of 32,000
pieces; a few thousand pieces from its own task make texts four times shorter
than bytes.
"""

from collections.abc import Iterator
import io
from typing import Annotated

from absl import logging
from etils import epath
import sentencepiece
import seqio

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.data import kinds
from perlhf_jax.data import task_modules


def train_vocabulary(
  *,
  task: str,
  output_path: str,
  vocab_size: Annotated[int, checks.AtLeastOne] = 4000,
  split: str = 'train',
  module: str | None = None,
) -> None:
  """Writes a SentencePiece model with T5's special ids (pad 0, EOS 1, unk 2).

  Unknown characters fall back to bytes, so that every text can be encoded.

  Args:
    task: a registered task or mixture with text features.
    output_path: the file to write, such as `spiece.model`.
    vocab_size: total number of pieces.
    split: split whose text is read.
    module: a module of yours that registers the task.

  Raises:
    ConfigError: the task is unknown, or the text does not allow the size.
  """
  task_modules.import_tasks(module)
  provider = task_modules.find(task)
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_texts(provider, split),
      model_writer=model,
      vocab_size=vocab_size,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      byte_fallback=True,
      hard_vocab_limit=False,
      # Newlines separate the turns of a dialogue; keep them, and all spaces.
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      user_defined_symbols=['\n'],
      max_sentence_length=1 << 20,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise errors.ConfigError(
      f'No vocabulary of {vocab_size} pieces can be made from {task}: {error}'
    ) from error
  path = epath.Path(output_path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(model.getvalue())
  logging.info('Wrote %s, %d pieces at most.', output_path, vocab_size)


def _texts(provider: seqio.Task | seqio.Mixture, split: str) -> Iterator[str]:
  """Yields every text once, without the rows that training would refuse."""
  dataset = provider.get_dataset(
    sequence_length=None,
    split=split,
    shuffle=False,
    num_epochs=1,
    trim_output_features=False,
  )
  kind = kinds.of_features(provider.output_features)
  names = () if kind is None else kind.texts
  for row in dataset.as_numpy_iterator():
    for name in names:
      text = row[name].decode()
      if text:
        yield text

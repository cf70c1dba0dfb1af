"""Small SentencePiece models, with T5's ids of pad, EOS and unknown."""

from collections.abc import Iterable
import io

import sentencepiece


def train(texts: Iterable[str], vocab_size: int, **options) -> bytes:
  """Trains a model; returns the content of its file.

  Args:
    texts: lines to train on.
    vocab_size: the number of pieces, at most.
    **options: options of SentencePiece's trainer; they win.
  """
  model = io.BytesIO()
  ids = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    vocab_size=vocab_size,
    hard_vocab_limit=False,
    minloglevel=2,
    **{**ids, **options},
  )
  return model.getvalue()

"""The subclasses of SeqIO's vocabularies that `vocabularies` makes."""

import seqio


class SentencePieceVocabulary(seqio.SentencePieceVocabulary):
  """A SeqIO SentencePiece vocabulary that is compared by content.

  SeqIO compares paths. So a vocabulary restored from a checkpoint would differ
  from the file it was made from.
  """

  def __eq__(self, other):
    if not isinstance(other, seqio.SentencePieceVocabulary):
      return NotImplemented
    return (self.extra_ids, self.sp_model) == (other.extra_ids, other.sp_model)

  def __hash__(self):
    return hash((self.extra_ids, self.sp_model))


class ByteVocabulary(seqio.ByteVocabulary):
  """A SeqIO byte vocabulary with a readable name in messages."""

  def __str__(self):
    return f'ByteVocabulary(extra_ids={self.extra_ids})'

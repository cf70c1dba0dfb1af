"""Text preprocessors: dialogues to prompts and responses.

The functions work on plain strings; `from_python` wraps such a function for the
`preprocessors` of a SeqIO task.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

import tensorflow as tf

ASSISTANT_MARKER = '\n\nAssistant:'

# Columns of a source's rows beside the features.
_KEPT = ('origin', 'problem', 'position')


def split_dialogue(
  dialogue: str, marker: str = ASSISTANT_MARKER
) -> tuple[str, str]:
  """Splits a dialogue at its last answer.

  Args:
    dialogue: a whole dialogue that ends with an answer.
    marker: text that introduces an answer.

  Returns:
    The prompt, which ends with the marker, and the answer; both stripped of
    surrounding white space.

  Raises:
    ValueError: the marker does not occur.
  """
  position = dialogue.rfind(marker)
  if position < 0:
    raise ValueError(f'the dialogue has no turn that starts with {marker!r}')
  position += len(marker)
  return dialogue[:position].strip(), dialogue[position:].strip()


def split_dialogue_pair(
  chosen: str, rejected: str, marker: str = ASSISTANT_MARKER
) -> tuple[str, str, str]:
  """Splits two dialogues at the last answer that they do not share.

  Usually the dialogues differ in the last answer only. If they differ earlier
  (5 of 2,312 rows of HH harmless), the prompt is their common beginning up to a
  marker, and each response is all the rest, later turns included, since the
  annotator compared all of it.

  Returns:
    The shared prompt, the chosen and the rejected response.

  Raises:
    ValueError: the common beginning has no marker.
  """
  prompt, chosen_response = split_dialogue(chosen, marker)
  other_prompt, rejected_response = split_dialogue(rejected, marker)
  if prompt == other_prompt:
    return prompt, chosen_response, rejected_response
  # A comparison character by character is intended here.
  shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071
  position = shared.rfind(marker)
  if position < 0:
    raise ValueError(
      'the chosen and the rejected dialogue share no prompt that ends with'
      f' {marker!r}'
    )
  position += len(marker)
  return (
    shared[:position].strip(),
    chosen[position:].strip(),
    rejected[position:].strip(),
  )


def render_dialogue(
  turns: Sequence[tuple[str, str]], next_speaker: str | None = None
) -> str:
  """Writes turns as `speaker: text`, one per line.

  Args:
    turns: speaker and text of each turn.
    next_speaker: speaker of the next turn; the prompt then ends with
      `speaker:`.
  """
  lines = [f'{speaker}: {" ".join(text.split())}' for speaker, text in turns]
  if next_speaker is not None:
    lines.append(f'{next_speaker}:')
  return '\n'.join(lines)


def from_python(
  function: Callable[[dict[str, Any]], Mapping[str, Any]],
  outputs: Sequence[str],
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
  """Makes a SeqIO preprocessor from a plain Python function on text.

  Args:
    function: takes an example, a dict in which text is `str`, and returns new
      text features.
    outputs: names of the new features. They replace all features of the
      example; `origin`, `problem` and `position` stay.

  Returns:
    A preprocessor, for `preprocessors=[...]` of a SeqIO task.
  """

  def preprocess(dataset: tf.data.Dataset) -> tf.data.Dataset:
    names = list(dataset.element_spec)

    def call(*values):
      example = {
        name: value.decode('utf-8') if isinstance(value, bytes) else value
        for name, value in zip(names, values, strict=True)
      }
      result = function(example)
      return [result[name].encode('utf-8') for name in outputs]

    def convert(example):
      values = tf.numpy_function(
        call, [example[name] for name in names], [tf.string] * len(outputs)
      )
      features = {name: example[name] for name in _KEPT if name in names}
      for name, value in zip(outputs, values, strict=True):
        value.set_shape([])
        features[name] = value
      return features

    return dataset.map(convert)

  return preprocess

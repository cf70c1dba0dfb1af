"""Text preprocessors: dialogues to prompts and responses.

The functions on plain strings are the whole truth; `from_python` wraps such
a function for the `preprocessors` of a SeqIO task.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

import tensorflow as tf

ASSISTANT_MARKER = '\n\nAssistant:'

# What a source says of a row beside its text.
_KEPT = ('origin', 'problem', 'position')


def split_dialogue(
  dialogue: str, marker: str = ASSISTANT_MARKER
) -> tuple[str, str]:
  """Splits a dialogue at its last answer.

  Args:
    dialogue: a whole dialogue that ends with an answer.
    marker: what introduces an answer.

  Returns:
    The prompt, which ends with the marker, and the answer; both without
    white space around them.

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

  Nearly always both differ in the last answer only. Where they part earlier
  (5 of 2,312 rows of HH harmless), the prompt is what they share up to a
  marker, and a response is all that follows, later turns included: these
  are what the annotator compared.

  Returns:
    The shared prompt, the chosen and the rejected response.

  Raises:
    ValueError: there is no marker in what they share.
  """
  prompt, chosen_response = split_dialogue(chosen, marker)
  other_prompt, rejected_response = split_dialogue(rejected, marker)
  if prompt == other_prompt:
    return prompt, chosen_response, rejected_response
  # Character by character is what is wanted here.
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
  """Writes turns as `speaker: text`, one a line.

  Args:
    turns: speaker and text of each turn.
    next_speaker: whose turn it is; the prompt then ends with `speaker:`.
  """
  lines = [f'{speaker}: {" ".join(text.split())}' for speaker, text in turns]
  if next_speaker is not None:
    lines.append(f'{next_speaker}:')
  return '\n'.join(lines)


def from_python(
  function: Callable[[dict[str, Any]], Mapping[str, Any]],
  outputs: Sequence[str],
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
  """Makes a SeqIO preprocessor of a plain Python function on text.

  Args:
    function: takes an example, a dict in which text is `str`, and returns
      new text features.
    outputs: names of these features. They replace those of the example,
      except for `origin`, `problem` and `position`, which stay.

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

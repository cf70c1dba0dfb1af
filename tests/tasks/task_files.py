"""Writes files of text tasks, and reads them as training does."""

import json

from perlhf_jax.data import input_pipeline
from perlhf_jax.data import vocabularies


def write_lines(path, rows):
  """Writes one JSON object a line, and the folders above."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def load(name, split, *, inputs, targets, **kwargs):
  """The examples of a task in bytes, cut at these lengths."""
  config = input_pipeline.DatasetConfig(
    name, {'inputs': inputs, 'targets': targets}, split=split, **kwargs
  )
  return input_pipeline.load_examples(config, vocabularies.byte_vocabulary())

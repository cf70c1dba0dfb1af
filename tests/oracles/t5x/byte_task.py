"""A SeqIO task of lines "prompt<TAB>response", in bytes, for infer.py."""

import os

import numpy as np
import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary()


def _split(line):
  parts = tf.strings.split(line, '\t')
  return {'inputs': parts[0], 'targets': parts[1]}


def length_of_predictions(targets, predictions):
  """Bytes of all predictions."""
  del targets
  return {'bytes': sum(len(text.encode()) for text in predictions)}


def mean_score(targets, scores):
  """Log-probability of a target."""
  del targets
  return {'score': float(np.mean(scores))}


seqio.TaskRegistry.add(
  'perlhf_bytes',
  source=seqio.TextLineDataSource({'test': os.environ['BYTE_TASK_FILE']}),
  preprocessors=[
    lambda lines: lines.map(_split),
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
  ],
  output_features={
    name: seqio.Feature(VOCABULARY) for name in ('inputs', 'targets')
  },
  metric_fns=[length_of_predictions, mean_score],
)

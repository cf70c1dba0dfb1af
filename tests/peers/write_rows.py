"""Writes a task's training rows as token ids, which all rivals read.

Needs perlhf_jax. The rows are tokenised and cut as `perlhf train_reward` does.
"""

import argparse
import json

from perlhf_jax.data import input_pipeline
from perlhf_jax.data import vocabularies


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--task', required=True)
  parser.add_argument('--vocabulary', required=True)
  parser.add_argument('--output', required=True)
  parser.add_argument('--inputs', type=int, default=1024)
  parser.add_argument('--targets', type=int, default=128)
  options = parser.parse_args()
  examples = input_pipeline.load_examples(
    input_pipeline.DatasetConfig(
      mixture_or_task_name=options.task,
      task_feature_lengths={
        'inputs': options.inputs,
        'targets': options.targets,
      },
      skip_bad_rows=True,
    ),
    vocabularies.sentencepiece_vocabulary(options.vocabulary),
  )
  with open(options.output, 'w') as file:
    for index in range(len(examples)):
      row = {
        name: value.tolist() if value.ndim else float(value)
        for name, value in examples.example(index).items()
      }
      file.write(json.dumps(row) + '\n')


if __name__ == '__main__':
  main()

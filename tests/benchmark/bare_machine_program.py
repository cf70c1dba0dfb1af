"""Runs a command where only what `perlhf benchmark` needs is installed."""

import sys

# Of what setup.py asks for, all that the others do not bring.
MISSING = (
  'clu',
  'rouge_score',
  'safetensors',
  'sentencepiece',
  'seqio',
  'tensorboard',
  'tensorflow',
  'tensorflow_datasets',
  'tensorflow_text',
  'tqdm',
)
for _name in MISSING:
  sys.modules[_name] = None  # Python takes it for a module that is not there.

from perlhf_jax.cli import main  # noqa: E402

sys.exit(main.run(sys.argv[1:]))

"""How printed commands are made quick: shapes, lengths and numbers of steps."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from perlhf_jax.cli import commands
from perlhf_jax.cli import gin_scan

# The shape of golden/hf_pali/t5; every T5 has it, so that compiling is shared.
SHAPE: Mapping[str, Any] = {
  'emb_dim': 32,
  'num_heads': 3,
  'head_dim': 8,
  'num_encoder_layers': 2,
  'num_decoder_layers': 1,
  'mlp_dim': 40,
  'logits_via_embedding': False,
  'dtype': 'float32',
  'scan_layers': False,
  'remat_policy': 'none',
  'attention_block': None,
  # Of the ViT.
  'IMAGE_SIZE': 28,
  'patch_size': 14,
  'width': 12,
  'depth': 1,
}
_LENGTHS = {'inputs': 16, 'targets': 16}
# Macros of run files.
_SMALL: Mapping[str, Any] = {
  'TASK_FEATURE_LENGTHS': _LENGTHS,
  'REFUSE_LONG_PROMPTS': False,
  'TRAIN_STEPS': 2,
  'BATCH_SIZE': 2,
  'WARMUP_STEPS': 1,
  'EVAL_EXAMPLES': 4,
  'LOG_PERIOD': 1,
  'EVAL_PERIOD': 2,
  'CHECKPOINT_PERIOD': 2,
  'REPEATS': 1,
  # tests/data/cached_tasks_test.py makes caches.
  'USE_CACHED_TASKS': False,
  # Constants of programs, which are then compiled once for all.
  'LEARNING_RATE': 1e-3,
  'VALUE_LEARNING_RATE': 1e-3,
  'DROPOUT_RATE': 0.0,
  'KL_BETA': 0.05,
  'BETA': 0.1,
  'TEMPERATURE': 1.0,
  # This machine has one device.
  'MESH_SHAPE': (-1, 1, 1),
  'ACCUMULATION_STEPS': 1,
}
_SMALL_OF_COMMAND: Mapping[str, Sequence[str]] = {
  'train_sft': ('--gin.DatasetConfig.max_examples=8',),
  'train_reward': ('--gin.DatasetConfig.max_examples=8',),
  'train_dpo': ('--gin.DatasetConfig.max_examples=8',),
  'train_policy': ('--gin.DatasetConfig.max_examples=8',),
  'generate': ('--batch_size=2', '--prompt_length=16', '--max_length=4'),
  'score': ('--batch_size=2',),
  'benchmark_input': ('--batch_size=2', '--num_batches=1', '--repeats=1'),
  'train_vocabulary': ('--vocab_size=300',),
}
# In programs of the reader's.
_SMALL_IN_PYTHON = (
  (r'\btrain_steps=\d+', 'train_steps=2'),
  (r'\b(\w+_period)=\d+', r'\1=2'),
  (r'\bbatch_size=\d+', 'batch_size=2'),
)


def small(arguments: Sequence[str]) -> list[str]:
  """Appends to a command line what makes it quick; later flags win."""
  name, *rest = arguments
  command = commands.COMMANDS.get(name)
  if command is None or '--help' in rest:
    return [*arguments]
  hosts = {flag.name for flag in commands.host_flags()}
  # There are no other hosts here.
  rest = [a for a in rest if a.lstrip('-').partition('=')[0] not in hosts]
  extra = list(_SMALL_OF_COMMAND.get(name, ()))
  if name == 'plan':
    return [name, *rest, *_small_plan(rest)]
  if command.gin_file:
    scan = gin_scan.Scan(command.gin_file)
    for macro, value in _SMALL.items():
      default, _ = scan.macros.get(macro, (None, ''))
      if default is None:
        continue  # It has no such macro, or takes what the training had.
      if macro == 'TASK_FEATURE_LENGTHS' and any('pali' in a for a in rest):
        value = {**value, 'images': 1}
      extra.append(f'--gin.{macro}={value!r}')
    if any('lora/attention' in argument for argument in rest):
      extra.append('--gin.LORA_RANK=2')
  return [name, *rest, *extra]


def _small_plan(arguments: Sequence[str]) -> list[str]:
  topologies = [a for a in arguments if a.startswith('--topology=')]
  return [
    *(a.partition(',')[0] for a in topologies),
    "--gin.TUNINGS=('lora',)",
    '--gin.MESH_SHAPE=(1, -1, 1)',
    f'--gin.TASK_FEATURE_LENGTHS={_LENGTHS}',
  ]


def made_small(text: str) -> str:
  """Makes a program of the reader's quick."""
  for pattern, replacement in _SMALL_IN_PYTHON:
    text = re.sub(pattern, replacement, text)
  return text

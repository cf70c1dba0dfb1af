"""One process of a run of all stages; started by `everywhere_test.py`.

  everywhere_program.py FOLDER MESH_SHAPE STAGES [HOST_FLAG ...]

Of STAGES, letters, s leaves sft/ in FOLDER, r reward/, p policy/, d dpo/, and u
uses them: answers.jsonl, and what `evaluate` wrote. i leaves pali_sft/ and
pali_policy/, of models that read pictures, and with j pali_reward/. Reward
models and policies start from FOLDER/../base, so that differences of one stage
do not add to those of the next. x leaves exported/, a reward model that starts
from the Hugging Face directory FOLDER/../hf, and y all of their exports:
FOLDER/out/NAME_FORMAT for FOLDER/../NAME. What FOLDER has already goes on.
"""

import pathlib
import sys

import jax
import runs

from perlhf_jax.cli import main

STEPS = 21
PALI_STEPS = 6
EXPORTED_STEPS = 3
EXPORTED = 'exported'
PROMPTS = [
  {'prompt': 'todo: gym Rent tea Call mail'},
  {'prompt': 'todo: Lamp'},
  {'prompt': 'todo: soap Oil'},
]
# 13 validation examples in batches of 8: the last one is ragged.
FLAGS = (
  '--gin.EVAL_EXAMPLES=13',
  '--gin.LOG_PERIOD=1',
  '--gin.EVAL_PERIOD=20',
  # The last step of a run, and the one before it, from which others go on.
  '--gin.CHECKPOINT_PERIOD=20',
  '--gin.LoopConfig.keep_best=2',
)
TEXT_FLAGS = ('--gin.T5Config.num_heads=4', '--gin.T5Config.head_dim=4')
PALI_FLAGS = (
  '--gin.PaliConfig.num_heads=4',
  '--gin.PaliConfig.head_dim=4',
)
_REWARD_FUNCTION = """
from __gin__ import dynamic_registration
from tasks import demo
REWARD_FUNCTIONS = (@demo.gold_scores,)
JUDGE = @demo.gold_scores
"""


def prepare(folder):
  """Makes a folder with what the processes of a run read."""
  folder.mkdir(exist_ok=True)
  (folder / 'functions.gin').write_text(_REWARD_FUNCTION)
  runs.write_rows(folder / 'prompts.jsonl', PROMPTS)


def run_stages(folder, mesh_shape, stages, *host_flags):
  """Runs stages one after the other in this process."""
  mesh = f'--gin.MESH_SHAPE={mesh_shape}'

  def train(command, tuning, name, task, *more, start=None):
    is_pali = name.startswith('pali')
    steps = {EXPORTED: EXPORTED_STEPS}.get(
      name, PALI_STEPS if is_pali else STEPS
    )
    arguments = runs.arguments(
      command,
      tuning,
      folder / name,
      task,
      *FLAGS,
      *(PALI_FLAGS if is_pali else TEXT_FLAGS),
      mesh,
      *more,
      start=start,
      steps=steps,
      tiny=runs.TINY_PALI if is_pali else runs.TINY,
    )
    first = not jax.distributed.is_initialized()
    assert main.run([*arguments, *(host_flags if first else ())]) == 0

  base = folder.parent / 'base'
  if 's' in stages:
    train('train_sft', 'none', 'sft', 'demo_sft')
  if 'r' in stages:
    train('train_reward', 'attention', 'reward', 'demo_rm', start=base / 'sft')
  if 'p' in stages:
    train(
      'train_policy',
      'attention',
      'policy',
      'demo_prompts',
      '--gin_file=gin/rl/reinforce.gin',
      f'--gin_file={folder / "functions.gin"}',
      f"--gin.REWARD_CHECKPOINT='{base / 'reward'}'",
      start=base / 'sft',
    )
  if 'd' in stages:
    train('train_dpo', 'attention', 'dpo', 'demo_rm', start=base / 'sft')
  if 'i' in stages:
    vit = '--gin.TRAIN_VIT=True'
    train('train_sft', 'none', 'pali_sft', 'demo_vqa_sft', vit)
    start = base / 'pali_sft'
    if 'j' in stages:
      train(
        'train_reward', 'attention', 'pali_reward', 'demo_vqa_rm', start=start
      )
    train(
      'train_policy',
      'attention',
      'pali_policy',
      'demo_vqa_prompts',
      '--gin_file=gin/rl/reinforce.gin',
      '--gin_file=gin/demo_vqa/gold.gin',
      f"--gin.REWARD_CHECKPOINT='{base / 'pali_reward'}'",
      start=start,
    )
  if 'x' in stages:
    no_model = ('--gin.MODEL=None', '--gin.VOCABULARY=None')
    hf = folder.parent / 'hf'
    train('train_reward', 'attention', EXPORTED, 'demo_rm', *no_model, start=hf)
  if 'y' in stages:
    for run in sorted(folder.parent.glob(f'*/{EXPORTED}')):
      for to in 'hf', 'peft':
        export = [
          'convert',
          f'--source={run}',
          f'--target={folder / "out" / f"{run.parent.name}_{to}"}',
          f'--to={to}',
          f'--mesh_shape={mesh_shape}',
        ]
        assert main.run(export) == 0
  if 'u' not in stages:
    return
  evaluate = [
    'evaluate',
    f'--checkpoint={folder / "reward"}',
    mesh,
    '--gin.SPLIT="validation"',
    '--gin.EVAL_EXAMPLES=13',
    '--batch_size=8',
  ]
  assert main.run(evaluate) == 0
  generate = [
    'generate',
    f'--checkpoint={base / "sft"}',
    f'--input={folder / "prompts.jsonl"}',
    f'--output={folder / "answers.jsonl"}',
    '--temperature=0',
    '--max_length=8',
    '--batch_size=8',
    f'--mesh_shape={mesh_shape}',
  ]
  assert main.run(generate) == 0


if __name__ == '__main__':
  path, shape, letters, *rest = sys.argv[1:]
  run_stages(pathlib.Path(path), shape, letters, *rest)

"""Command lines of tiny runs, shared by the tests of the stages."""

import json

import metric_records

from perlhf_jax.cli import main

_T5 = {
  'emb_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'mlp_dim': 32,
  'num_encoder_layers': 1,
  'num_decoder_layers': 1,
}
_VIT = {'width': 8, 'depth': 1, 'mlp_dim': 12, 'num_heads': 2}


def _fields(config, fields):
  return (f'--gin.{config}.{name}={value}' for name, value in fields.items())


TINY = (
  '--gin_file=gin/models/t5_tiny.gin',
  '--gin_file=gin/optimizers/adamw.gin',
  '--gin_file=gin/demo/world.gin',
  *_fields('T5Config', _T5),
)
# Reads pictures, of tasks named demo_vqa_*.
TINY_PALI = (
  '--gin_file=gin/models/pali_tiny.gin',
  '--gin_file=gin/optimizers/adamw.gin',
  '--gin_file=gin/demo_vqa/world.gin',
  *_fields('PaliConfig', _T5),
  *_fields('ViTConfig', _VIT),
)
_FEW = (
  '--gin.DatasetConfig.max_examples=48',
  '--gin.BATCH_SIZE=8',
  '--gin.EVAL_PERIOD=3',
  '--gin.CHECKPOINT_PERIOD=3',
  '--gin.LOG_PERIOD=2',
  '--gin.WARMUP_STEPS=1',
)
_OF_POLICIES = 'train_dpo', 'train_policy'


def arguments(
  command, tuning, model_dir, task, *more, start=None, steps=6, tiny=TINY
):
  """The command line of a tiny run."""
  return [
    command,
    f'--gin_file=gin/runs/{command}.gin',
    *tiny,
    *_FEW,
    # A policy is tuned without dropout.
    f'--gin.DROPOUT_RATE={0.0 if command in _OF_POLICIES else 0.1}',
    f'--gin_file=gin/lora/{tuning}.gin',
    f"--gin.MODEL_DIR='{model_dir}'",
    f"--gin.MIXTURE_OR_TASK_NAME='{task}'",
    f'--gin.TRAIN_STEPS={steps}',
    *([f"--gin.INITIAL_CHECKPOINT_PATH='{start}'"] if start else []),
    *more,
  ]


def train(*args, **kwargs):
  """Trains, and expects no error."""
  assert main.run(arguments(*args, **kwargs)) == 0


def train_on(
  command, task, start, folder, *more, tuning='attention', tiny=TINY
):
  """Trains the model of a checkpoint for three steps; returns the MODEL_DIR."""
  more = '--gin.MODEL=None', '--gin.VOCABULARY=None', *more
  train(command, tuning, folder, task, *more, start=start, steps=3, tiny=tiny)
  return folder


def convert(source, target, to, *flags):
  """Converts a checkpoint; returns the exit code."""
  flags = (f'--source={source}', f'--target={target}', f'--to={to}', *flags)
  return main.run(['convert', *flags])


metrics = metric_records.read


def write_rows(path, rows):
  """Writes JSON lines."""
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def score(checkpoint, rows, tmp_path, *more):
  """Scores rows by `perlhf score`; returns what it wrote."""
  return _answer('score', checkpoint, rows, tmp_path, more)


def generate(checkpoint, rows, tmp_path, *more):
  """Answers rows by `perlhf generate`; returns what it wrote."""
  return _answer('generate', checkpoint, rows, tmp_path, more)


def _answer(command, checkpoint, rows, tmp_path, more):
  source = write_rows(tmp_path / 'in.jsonl', rows)
  target = tmp_path / 'out.jsonl'
  arguments = [command, f'--checkpoint={checkpoint}', f'--input={source}']
  assert main.run([*arguments, f'--output={target}', *more]) == 0
  return [json.loads(line) for line in target.read_text().splitlines()]

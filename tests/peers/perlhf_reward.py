"""A worker: the reward step of `perlhf train_reward`, on the task itself.

It runs with the checkout that PYTHONPATH names, today's or an earlier one.
"""

import argparse
import itertools

import jax
import numpy as np
import rounds

import perlhf_jax
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import vocabularies
from perlhf_jax.models import lora
from perlhf_jax.models import reward_model
from perlhf_jax.models import t5_config
from perlhf_jax.runs import run as run_lib
from perlhf_jax.stages import train_reward
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# gin/models/t5_1_1_small.gin, whose dropout rate is that of train_reward.gin.
SMALL = t5_config.T5Config(
  vocab_size=32128,
  emb_dim=512,
  num_heads=6,
  head_dim=64,
  num_encoder_layers=8,
  num_decoder_layers=8,
  mlp_dim=1024,
  mlp_activations=('gelu', 'linear'),
  logits_via_embedding=False,
  dropout_rate=0.1,
)
_TOKENS = '_tokens'


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--task', required=True)
  parser.add_argument('--vocabulary', required=True)
  parser.add_argument('--inputs', type=int, default=1024)
  parser.add_argument('--targets', type=int, default=128)
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--per_round', type=int, default=8)
  parser.add_argument('--num_rounds', type=int, default=6)
  options = parser.parse_args()
  mesh = partitioning.make_mesh()
  vocabulary = vocabularies.sentencepiece_vocabulary(options.vocabulary)
  start = loaded_model.LoadedModel(SMALL, vocabulary)
  examples = start.load_examples(
    input_pipeline.DatasetConfig(
      mixture_or_task_name=options.task,
      task_feature_lengths={
        'inputs': options.inputs,
        'targets': options.targets,
      },
      batch_size=options.batch_size,
      skip_bad_rows=True,
    )
  )
  run = run_lib.make_run(
    start,
    lora.LoraConfig(rank=8),
    mesh,
    0,
    init_heads=lambda rng: reward_model.init_heads(start.config, rng),
  )
  steps = run_lib.make_steps(
    run,
    train_reward.make_loss(
      reward_model.RewardModel(run.model), examples.kind, 0.0
    ),
    optimizers.Optimizer(),
    train_steps=1_000_000,
    seed=0,
  )
  state = steps.create(run.trainable)

  def train(batch):
    nonlocal state
    batch = placement.put_batch(batch, mesh)
    state, metrics = steps.train(state, run.frozen, batch)
    jax.block_until_ready(metrics)

  epoch = -(-len(examples) // options.batch_size)
  batches = list(
    itertools.islice(input_pipeline.train_iterator(examples), epoch)
  )
  costs = [_positions(batch) for batch in batches]
  chosen = rounds.stratified(costs, options.per_round, options.num_rounds)
  compiled = set()
  for batch in batches:
    shapes = tuple(x.shape for x in batch.values())
    if shapes not in compiled:
      compiled.add(shapes)
      train(batch)

  def measure(number):
    mine = chosen[number]
    return rounds.timed_steps(
      lambda i: train(batches[i]),
      mine,
      examples=len(mine) * options.batch_size,
      tokens=sum(_tokens(batches[i]) for i in mine),
      positions=sum(costs[i] for i in mine),
    )

  rounds.serve(
    measure,
    code=perlhf_jax.__path__[0],
    shapes=len(compiled),
    step_memory_gib=steps.train.memory_bytes / 2**30,
    epoch_positions=float(np.mean(costs)) / options.batch_size,
  )


def _positions(batch):
  """Tokens that are computed, of all prompts and responses."""
  return sum(x.size for name, x in batch.items() if name.endswith(_TOKENS))


def _tokens(batch):
  """Those of them that are not padding."""
  masks = [name.removesuffix(_TOKENS) + '_mask' for name in batch]
  return sum(int(batch[mask].sum()) for mask in masks if mask in batch)


if __name__ == '__main__':
  main()

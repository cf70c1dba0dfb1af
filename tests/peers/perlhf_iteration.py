"""A worker: an iteration of REINFORCE, as `perlhf benchmark` makes it.

Sampling, reward model, reference, and one update of policy and value model,
each with weights of T5 1.1 small. It runs with the checkout that PYTHONPATH
names.
"""

import argparse

import jax
import numpy as np
import perlhf_sampler
import rounds

from perlhf_jax.benchmark import batches
from perlhf_jax.benchmark import benchmark
from perlhf_jax.benchmark import policy
from perlhf_jax.benchmark import reward
from perlhf_jax.benchmark import setting as setting_lib
from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.data import kinds
from perlhf_jax.models import lora
from perlhf_jax.rl import reinforce
from perlhf_jax.sampling import sampler
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

_TUNINGS = {
  'lora': lora.LoraConfig(rank=8),
  'decoder': lora.LoraConfig(rank=8, target_modules=('decoder/layers.*',)),
  'full': None,
}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--tuning', choices=_TUNINGS, default='lora')
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--inputs', type=int, default=256)
  parser.add_argument('--targets', type=int, default=64)
  options = parser.parse_args()
  mesh = partitioning.make_mesh()
  config, size = perlhf_sampler.SMALL, options.batch_size
  limits = {'inputs': options.inputs, 'targets': options.targets}
  rng = np.random.default_rng(0)
  prompts = batches.random_prompts(rng, size, limits, config.vocab_size, None)
  pairs = batches.pair_batch(rng, prompts, limits, config.vocab_size)
  start = benchmark.with_random_weights(
    loaded_model.LoadedModel(config), mesh, 0
  )
  setting = setting_lib.Setting(
    _TUNINGS[options.tuning], optimizers.Optimizer(learning_rate=1e-6), mesh, 0
  )
  programs = policy.PolicyPrograms(
    start,
    setting,
    reinforce.Reinforce(),
    sampler.SamplingConfig(max_length=options.targets, temperature=0.9),
    reward.RewardPrograms(start, setting, kinds.PAIRWISE, pairs).trained(),
    placement.put_batch(prompts, mesh),
  )
  iterate = programs.calls()['rl_iteration']

  def step(number):
    jax.block_until_ready(iterate(number))

  step(0)

  def measure(number):
    count = size * (options.inputs + options.targets)
    return rounds.timed_steps(
      step, [number + 1], examples=size, tokens=count, positions=count
    )

  rounds.serve(
    measure,
    jax=jax.__version__,
    epoch_positions=options.inputs + options.targets,
  )


if __name__ == '__main__':
  main()

"""A worker: our sampler, of an adapted T5 1.1 small with random weights."""

import argparse

import jax
import numpy as np
import rounds

from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora
from perlhf_jax.models import prompts
from perlhf_jax.models import t5_config
from perlhf_jax.sampling import sampler
from perlhf_jax.training import model_variables
from perlhf_jax.training import partitioning

# gin/models/t5_1_1_small.gin.
SMALL = t5_config.T5Config(
  vocab_size=32128,
  emb_dim=512,
  num_heads=6,
  head_dim=64,
  num_encoder_layers=8,
  num_decoder_layers=8,
  mlp_dim=1024,
  mlp_activations=('gelu', 'linear'),
)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--inputs', type=int, default=256)
  parser.add_argument('--targets', type=int, default=64)
  options = parser.parse_args()
  adapters = lora.resolve(
    lora.LoraConfig(rank=8), encoder_decoder.dense_module_paths(SMALL)
  )
  model = encoder_decoder.make_model(SMALL, adapters)
  variables, _ = model_variables.place(
    lambda: dict(encoder_decoder.init_variables(model, jax.random.key(0))),
    {},
    partitioning.make_mesh(),
  )
  shape = options.batch_size, options.inputs
  tokens = np.random.default_rng(0).integers(2, 32000, shape).astype(np.int32)
  config = sampler.SamplingConfig(max_length=options.targets)

  @jax.jit
  def sample(variables, tokens, key):
    batch = {'prompt_tokens': tokens, 'prompt_mask': tokens > 0}
    return sampler.sample(
      model,
      variables,
      prompts.of_batch(batch),
      jax.random.split(key, options.batch_size),
      config,
      early_stop=False,
    )

  def step(number):
    key = jax.random.key(number)
    sample(variables, tokens, key).tokens.block_until_ready()

  step(-1)

  def measure(number):
    count = options.batch_size * options.targets
    return rounds.timed_steps(
      step,
      [number],
      examples=options.batch_size,
      tokens=count,
      positions=count,
    )

  rounds.serve(measure, jax=jax.__version__, epoch_positions=options.targets)


if __name__ == '__main__':
  main()

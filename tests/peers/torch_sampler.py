"""A worker: transformers' generate, of T5 1.1 small with PEFT's adapters."""

import argparse

import peft
import rounds
import torch
import torch_reward
import transformers


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--inputs', type=int, default=256)
  parser.add_argument('--targets', type=int, default=64)
  options = parser.parse_args()
  torch.manual_seed(0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  config = transformers.T5Config(**{**torch_reward.SMALL, 'use_cache': True})
  model = peft.get_peft_model(
    transformers.T5ForConditionalGeneration(config),
    peft.LoraConfig(r=8, target_modules=torch_reward.SITES),
  ).to(device)
  model.eval()
  shape = options.batch_size, options.inputs
  tokens = torch.randint(2, 32000, shape, device=device)

  def step(number):
    torch.manual_seed(number)
    with torch.inference_mode():
      responses = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=True,
        top_k=0,
        min_new_tokens=options.targets,
        max_new_tokens=options.targets,
      )
    assert responses.shape[1] == options.targets + 1  # The start token.

  step(0)

  def measure(number):
    count = options.batch_size * options.targets
    return rounds.timed_steps(
      step,
      [number],
      examples=options.batch_size,
      tokens=count,
      positions=count,
    )

  rounds.serve(
    measure,
    torch=torch.__version__,
    transformers=transformers.__version__,
    threads=torch.get_num_threads(),
    epoch_positions=options.targets,
  )


if __name__ == '__main__':
  main()

"""A worker: PPO of a T5 with LoRA by TRL 0.11.4, the last that can.

Sampling, the reference (the model with its adapters off) and one update of
policy and values. The value is a head on the policy, and there is no reward
model: scores are drawn at random.
"""

import argparse
import tempfile

import peft
import rounds
import torch
import torch_reward
import transformers
import trl


class _Tokenizer(transformers.PreTrainedTokenizer):
  """Token ids of the right kind; there is no text."""

  def __init__(self):
    super().__init__(pad_token='<pad>', eos_token='</s>')

  @property
  def vocab_size(self):
    return torch_reward.SMALL['vocab_size']

  def get_vocab(self):
    return {'<pad>': 0, '</s>': 1}

  def _convert_token_to_id(self, token):
    return self.get_vocab()[token]

  def _convert_id_to_token(self, index):
    return {0: '<pad>', 1: '</s>'}[index]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--inputs', type=int, default=256)
  parser.add_argument('--targets', type=int, default=64)
  options = parser.parse_args()
  torch.manual_seed(0)
  config = transformers.T5Config(**{**torch_reward.SMALL, 'use_cache': True})
  with tempfile.TemporaryDirectory() as folder:
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    model = trl.AutoModelForSeq2SeqLMWithValueHead.from_pretrained(
      folder,
      peft_config=peft.LoraConfig(
        r=8, target_modules=torch_reward.SITES, task_type='SEQ_2_SEQ_LM'
      ),
    )
  size = options.batch_size
  trainer = trl.PPOTrainer(
    trl.PPOConfig(
      batch_size=size, mini_batch_size=size, ppo_epochs=1, learning_rate=1e-6
    ),
    model,
    ref_model=None,
    tokenizer=_Tokenizer(),
  )
  prompts = torch.randint(2, 32000, (size, options.inputs))

  def step(number):
    torch.manual_seed(number)
    queries = list(prompts)
    responses = trainer.generate(
      queries,
      batch_size=size,
      return_prompt=False,
      do_sample=True,
      top_k=0,
      top_p=1.0,
      min_new_tokens=options.targets,
      max_new_tokens=options.targets,
    )
    scores = list(torch.randn(size))
    trainer.step(queries, responses, scores)

  step(0)

  def measure(number):
    count = size * (options.inputs + options.targets)
    return rounds.timed_steps(
      step, [number], examples=size, tokens=count, positions=count
    )

  rounds.serve(
    measure,
    torch=torch.__version__,
    transformers=transformers.__version__,
    trl=trl.__version__,
    threads=torch.get_num_threads(),
    epoch_positions=options.inputs + options.targets,
  )


if __name__ == '__main__':
  main()

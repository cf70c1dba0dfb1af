"""A worker: a reward model that PyTorch and PEFT train with LoRA.

`loop` is the plain loop: the prompt in the encoder, the response in the
decoder, the score from its last token, each padded to the longest of a batch.
`trl` is the model that TRL's RewardTrainer trains, with TRL's own collator and
loss: prompt and response as one sequence in both stacks. TRL knows pairs only;
judged responses get the same model with a binary cross entropy.
"""

import argparse
import json

import peft
import rounds
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn
import transformers
from transformers import trainer_pt_utils
from trl.trainer import reward_trainer

_EOS = 1
# T5 1.1 small, and where it is adapted.
SMALL = dict(
  vocab_size=32128,
  d_model=512,
  d_kv=64,
  d_ff=1024,
  num_layers=8,
  num_decoder_layers=8,
  num_heads=6,
  feed_forward_proj='gated-gelu',
  tie_word_embeddings=False,
  dropout_rate=0.1,
  pad_token_id=0,
  eos_token_id=_EOS,
  decoder_start_token_id=0,
  use_cache=False,
)
SIZES = {
  'tiny': dict(d_model=64, d_kv=16, d_ff=128, num_heads=4),
  'small': {},
  'xl': dict(
    d_model=2048, d_ff=5120, num_heads=32, num_layers=24, num_decoder_layers=24
  ),
  'xxl': dict(
    d_model=4096, d_ff=10240, num_heads=64, num_layers=24, num_decoder_layers=24
  ),
}
SITES = ['q', 'k', 'v', 'o']


def _pad(rows):
  """Returns tokens and mask, `[batch, longest]`, on the device."""
  tensors = [torch.tensor(row) for row in rows]
  tokens = rnn.pad_sequence(tensors, batch_first=True)
  lengths = torch.tensor([len(row) for row in rows])
  return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


class LoopModel(nn.Module):
  """Scores responses from the decoder's last token."""

  def __init__(self, config):
    super().__init__()
    self.model = peft.get_peft_model(
      transformers.T5Model(config),
      peft.LoraConfig(r=8, target_modules=SITES),
    )
    self.head = nn.Linear(config.d_model, 1)

  def loss(self, rows):
    responses = [r for name in _responses(rows[0]) for r in _each(rows, name)]
    prompts = _each(rows, 'inputs') * (len(responses) // len(rows))
    tokens, mask = _pad(prompts)
    # The decoder begins with padding, and ends with the response's EOS.
    answers, answer_mask = _pad([[0, *response] for response in responses])
    device = self.head.weight.device
    hidden = self.model(
      input_ids=tokens.to(device),
      attention_mask=mask.to(device),
      decoder_input_ids=answers.to(device),
      decoder_attention_mask=answer_mask.to(device),
    ).last_hidden_state
    last = (answer_mask.sum(1) - 1).to(device)
    rows_of = torch.arange(len(last), device=device)
    scores = self.head(hidden[rows_of, last])[:, 0]
    return _loss(scores, rows)

  def positions(self, rows):
    names = _responses(rows[0])
    prompt = max(map(len, _each(rows, 'inputs')))
    response = max(len(row[name]) for row in rows for name in names)
    return len(rows) * len(names) * (prompt + response + 1)


class TrlModel(nn.Module):
  """What TRL trains."""

  def __init__(self, config):
    super().__init__()
    self.model = peft.get_peft_model(
      transformers.T5ForSequenceClassification(config),
      peft.LoraConfig(
        r=8,
        target_modules=SITES,
        task_type='SEQ_CLS',
        modules_to_save=['classification_head'],
      ),
    )
    self._collate = reward_trainer.DataCollatorForPreference(pad_token_id=0)

  def loss(self, rows):
    names = _responses(rows[0])
    whole = [[row['inputs'][:-1] + row[name] for name in names] for row in rows]
    batch = self._collate(
      [{'chosen_ids': each[0], 'rejected_ids': each[-1]} for each in whole]
    )
    if len(names) == 1:  # The collator made two halves of the same.
      batch = {name: x[: len(rows)] for name, x in batch.items()}
    device = next(self.model.parameters()).device
    logits = self.model(**{n: x.to(device) for n, x in batch.items()}).logits
    return _loss(logits[:, 0], rows)

  def positions(self, rows):
    names = _responses(rows[0])
    longest = max(
      len(row['inputs']) - 1 + len(row[name]) for row in rows for name in names
    )
    return 2 * len(rows) * len(names) * longest  # In both stacks.


def _responses(row):
  return ('chosen', 'rejected') if 'chosen' in row else ('targets',)


def _each(rows, name):
  return [row[name] for row in rows]


def _loss(scores, rows):
  if 'chosen' in rows[0]:
    chosen, rejected = scores.chunk(2)
    return -functional.logsigmoid(chosen - rejected).mean()
  labels = torch.tensor(_each(rows, 'label'), device=scores.device)
  return functional.binary_cross_entropy_with_logits(scores.float(), labels)


def _size(row):
  return sum(len(value) for value in row.values() if isinstance(value, list))


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--model', choices=('loop', 'trl'), required=True)
  parser.add_argument('--rows', required=True)
  parser.add_argument('--size', choices=SIZES, default='small')
  parser.add_argument('--dtype', default='float32', help='of all weights')
  parser.add_argument('--group_by_length', action='store_true')
  parser.add_argument('--batch_size', type=int, default=8)
  parser.add_argument('--per_round', type=int, default=6)
  parser.add_argument('--num_rounds', type=int, default=6)
  options = parser.parse_args()
  torch.manual_seed(0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  with open(options.rows) as file:
    rows = [json.loads(line) for line in file]
  sizes, size = [_size(row) for row in rows], options.batch_size
  if options.group_by_length:
    order = trainer_pt_utils.get_length_grouped_indices(sizes, size)
  else:
    order = torch.randperm(len(rows)).tolist()
  batches = [
    [rows[i] for i in order[first : first + size]]
    for first in range(0, len(order) - size + 1, size)
  ]
  config = transformers.T5Config(
    **{**SMALL, **SIZES[options.size]}, num_labels=1
  )
  dtype = getattr(torch, options.dtype)
  # Drawn where they stay: a large model takes minutes elsewhere.
  torch.set_default_dtype(dtype)
  with torch.device(device):
    model = {'loop': LoopModel, 'trl': TrlModel}[options.model](config)
  torch.set_default_dtype(torch.float32)
  model.train()
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-3)

  def step(number):
    loss = model.loss(batches[number])
    loss.backward()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss.item()

  costs = [model.positions(batch) for batch in batches]
  chosen = rounds.stratified(costs, options.per_round, options.num_rounds)
  step(min(range(len(costs)), key=lambda number: costs[number]))

  def measure(number):
    mine = chosen[number]
    return rounds.timed_steps(
      step,
      mine,
      examples=len(mine) * size,
      tokens=sum(_size(row) for i in mine for row in batches[i]),
      positions=sum(costs[i] for i in mine),
    )

  rounds.serve(
    measure,
    torch=torch.__version__,
    transformers=transformers.__version__,
    peft=peft.__version__,
    threads=torch.get_num_threads(),
    epoch_positions=sum(costs) / len(costs) / size,
    trained=sum(p.numel() for p in trained),
  )


if __name__ == '__main__':
  main()

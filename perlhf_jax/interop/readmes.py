"""README.md files for directories that `transformers` cannot load in one call.

Each contains a few lines of Python that use the directory; tests/oracles runs
them.
"""

from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config

FILE = 'README.md'

_LOAD = {
  'merged': """\
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32).eval()
""",
  'adapter': """\
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, path).get_base_model().eval()
""",
}

_REWARD = """\
# A reward model

A T5{what}, and a head in `reward_head.safetensors`. The score of a response:

* The encoder reads the prompt, and the decoder the response: a start token
  (id 0) and then the response's tokens, the last of which is EOS (id 1).
* The decoder's last hidden state (behind its final layer norm, {emb_dim}
  numbers) is read where EOS is the input, so that it has seen the whole
  response.
* The head is linear: `score = weight · state + bias`. Higher is better.

`transformers` has no class for this. With it{packages}:

```python
import torch
from safetensors.torch import load_file
{imports}
{load}head = load_file(f'{{path}}/reward_head.safetensors')


def score(prompts, responses):
  prompt = tokenizer(prompts, padding=True, return_tensors='pt')
  response = tokenizer(responses, padding=True, return_tensors='pt')
  encoded = model.encoder(**prompt).last_hidden_state
  states = model.decoder(
    input_ids=torch.nn.functional.pad(response.input_ids, (1, 0)),
    encoder_hidden_states=encoded,
    encoder_attention_mask=prompt.attention_mask,
  ).last_hidden_state
  last = response.attention_mask.sum(1)  # EOS, behind the start token.
  states = states[torch.arange(len(last)), last]
  return states @ head['weight'][0] + head['bias']
```

`path` is this directory{base}. Pad on the right, and call it under
`torch.no_grad()`.
"""

_PALI = """\
# A PaLI in its parts

`siglip` and `t5` are directories of `transformers`. An image of
{image_size} x {image_size} pixels becomes {num_tokens} tokens: all states of
the SigLIP's last layer, not pooled, which `image_projection.safetensors` maps
to the width of the T5. They precede the embedded text, and the encoder
reads both.

```python
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers import SiglipVisionModel

tokenizer = AutoTokenizer.from_pretrained(f'{{path}}/t5')
siglip = SiglipVisionModel.from_pretrained(
  f'{{path}}/siglip', dtype=torch.float32
).eval()
t5 = AutoModelForSeq2SeqLM.from_pretrained(
  f'{{path}}/t5', dtype=torch.float32
).eval()
projection = load_file(f'{{path}}/image_projection.safetensors', 'cpu')
projection = {{name: tensor.float() for name, tensor in projection.items()}}


def encode(prompts, images):
  prompt = tokenizer(prompts, padding=True, return_tensors='pt')
  pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
  states = siglip(pixel_values=pixels).last_hidden_state
  states = states @ projection['weight'].T + projection['bias']
  embedded = torch.cat([states, t5.shared(prompt.input_ids)], 1)
  present = torch.ones(states.shape[:2], dtype=torch.long)
  mask = torch.cat([present, prompt.attention_mask], 1)
  encoded = t5.encoder(inputs_embeds=embedded, attention_mask=mask)
  return {{'encoder_outputs': encoded, 'attention_mask': mask}}
```

`path` is this directory, and `images` are uint8
`[prompts, {image_size}, {image_size}, 3]`, one per prompt.
`t5.generate(**encode(prompts, images))` answers. Pad on the right, and call it
under `torch.no_grad()`.
"""

_PALI_HEAD = """
## Its scores

This PaLI is a reward model. The decoder reads a start token (id 0) and then the
response's tokens, the last of which is EOS (id 1); its last hidden state where
EOS is the input goes through the linear head of `reward_head.safetensors`.

```python
head = load_file(f'{path}/reward_head.safetensors')


def score(prompts, images, responses):
  prompt = encode(prompts, images)
  response = tokenizer(responses, padding=True, return_tensors='pt')
  states = t5.decoder(
    input_ids=torch.nn.functional.pad(response.input_ids, (1, 0)),
    encoder_hidden_states=prompt['encoder_outputs'].last_hidden_state,
    encoder_attention_mask=prompt['attention_mask'],
  ).last_hidden_state
  last = response.attention_mask.sum(1)  # EOS, behind the start token.
  states = states[torch.arange(len(last)), last]
  return states @ head['weight'][0] + head['bias']
```
"""


def reward(config: t5_config.T5Config, *, adapter: bool) -> str:
  """Returns a README on computing the score of a reward model.

  Args:
    config: configuration of the backbone.
    adapter: whether the directory holds adapters instead of a whole T5.
  """
  if adapter:
    return _REWARD.format(
      what=', LoRA adapters on it',
      packages=' and PEFT',
      imports='from peft import PeftModel\n'
      'from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n',
      base=', and `base` is the directory of the T5 (see adapter_config.json)',
      load=_LOAD['adapter'],
      emb_dim=config.emb_dim,
    )
  return _REWARD.format(
    what='',
    packages='',
    imports='from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n',
    base='',
    load=_LOAD['merged'],
    emb_dim=config.emb_dim,
  )


def pali(config: pali_config.PaliConfig, *, reward: bool = False) -> str:
  """Returns a README on combining the parts of a PaLI, and on its score.

  Args:
    config: configuration of the PaLI.
    reward: whether it is a reward model.
  """
  text = _PALI.format(
    image_size=config.vit.image_size, num_tokens=config.vit.num_tokens
  )
  return text + _PALI_HEAD if reward else text

"""T5X runs a policy that we merged and saved: `t5x.infer` and `t5x.eval`.

    python tests/oracles/t5x/infer.py

Needs T5X and this library; see README.md. For a T5 1.1 and for one with a
position bias of each layer, a random policy with LoRA is merged and saved, and
`python -m t5x.infer` and `python -m t5x.eval` are started on it, with T5X's
network and with `perlhf_jax.interop.t5x_models`. Greedy responses and scores
must be those of this library, and those of beam search the same of both.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.interop import t5x
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import merge
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5_config
from perlhf_jax.sampling import sampler

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parents[1] / 'support'))
import tiny_models  # noqa: E402  The tests' random weights.

CONFIG = t5_config.T5Config(
  vocab_size=384,
  emb_dim=32,
  num_heads=4,
  num_encoder_layers=2,
  num_decoder_layers=3,
  head_dim=8,
  mlp_dim=48,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.0,
)
CONFIGS = {
  'v1_1': (CONFIG, 'examples.t5'),
  'umt5': (
    dataclasses.replace(CONFIG, relpos_bias_per_layer=True),
    'examples.scalable_t5',
  ),
}
# Of what no line exceeds: SeqIO would cut EOS off.
LENGTHS = {'inputs': 32, 'targets': 32}
LINES = [
  ('Order: large latte, oat milk.', 'One latte.'),
  ('hi', 'Hello! What would you like?'),
  ('Where is the café?', 'There.'),
  ('a', 'b'),
  ('The second one, please.', 'Two seats, at ten.'),
]
HEADER = """
from __gin__ import dynamic_registration
import __main__ as {script}_script
import seqio
import byte_task
from t5x import decoding
from t5x import models
from t5x import utils
include 't5x/configs/runs/{script}.gin'
MIXTURE_OR_TASK_NAME = 'perlhf_bytes'
TASK_FEATURE_LENGTHS = {lengths}
utils.DatasetConfig.batch_size = 4
utils.RestoreCheckpointConfig.dtype = 'float32'
VOCABULARY = @seqio.ByteVocabulary()
"""
GREEDY = """
models.EncoderDecoderModel.decode_fn = @decoding.temperature_sample
decoding.temperature_sample.temperature = 0.0
"""
THEIRS = """
from t5x import adafactor
from t5x.{network} import network
MODEL = @models.EncoderDecoderModel()
models.EncoderDecoderModel:
  module = @network.Transformer()
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
  optimizer_def = @adafactor.Adafactor()
network.Transformer.config = @network.T5Config()
network.T5Config:
  vocab_size = 384
  emb_dim = 32
  num_heads = 4
  num_encoder_layers = 2
  num_decoder_layers = 3
  head_dim = 8
  mlp_dim = 48
  mlp_activations = ('gelu', 'linear')
  dropout_rate = 0.0
  dtype = 'float32'
"""
OURS = """
from perlhf_jax.interop import t5x_models
MODEL = @t5x_models.EncoderDecoderModel()
t5x_models.EncoderDecoderModel:
  checkpoint = %CHECKPOINT_PATH
  input_vocabulary = %VOCABULARY
  output_vocabulary = %VOCABULARY
"""
WITH_TOKENS = """
infer_script.infer.write_fn = @infer_script.write_inferences_to_file
infer_script.write_inferences_to_file.output_ids = True
"""


SCORE = """
infer_script.infer.mode = 'score'
"""


def merged_policy(config):
  """Returns merged weights of a random policy with LoRA."""
  lora_config = lora_lib.LoraConfig(rank=4)
  model, lora = tiny_models.adapted(lora_config, config)
  params, report = merge.merge_and_check(
    model, tiny_models.params(config), lora, tolerance=1e-3
  )
  print(json.dumps({'merge': report._asdict()}), flush=True)
  return params


def padded(texts, length):
  """Bytes as `seqio.ByteVocabulary` has them, EOS, and 0 after it."""
  rows = [[byte + 3 for byte in text.encode()] for text in texts]
  return np.array(
    [[*row, 1, *[0] * (length - 1 - len(row))] for row in rows], np.int32
  )


def own(config, params):
  """Returns greedy tokens and scores of this library."""
  model = encoder_decoder.make_model(config)
  prompts, targets = (
    padded([line[i] for line in LINES], length)
    for i, length in enumerate(LENGTHS.values())
  )
  prompts = prompts_lib.of_tokens(jnp.asarray(prompts))
  inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  variables = {'params': params}
  logits = model.apply(variables, prompts, inputs)
  logprobs = jnp.take_along_axis(
    jax.nn.log_softmax(logits), targets[..., None], -1
  )[..., 0]
  samples = sampler.sample(
    model,
    variables,
    prompts,
    jax.random.split(jax.random.key(0), len(LINES)),
    sampler.SamplingConfig(max_length=LENGTHS['targets'], temperature=0.0),
  )
  scores = (logprobs * (targets > 0)).sum(-1)
  return np.asarray(samples.tokens[:, 0]), np.asarray(scores)


def run(script, gin, folder, step, environment):
  """Starts a program of T5X and returns its folder of results."""
  out = folder / f'out_{len(list(folder.iterdir()))}'
  file = folder / f'{out.name}.gin'
  file.write_text(gin)
  command = [
    *(sys.executable, '-m', f't5x.{script}', f'--gin_file={file}'),
    f'--gin.CHECKPOINT_PATH={str(step)!r}',
    f'--gin.{script.upper()}_OUTPUT_DIR={str(out)!r}',
  ]
  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=False
  )
  if done.returncode:
    sys.exit(f'{" ".join(command)}\n{done.stderr[-6000:]}')
  return out


def records(out):
  """Reads the one JSON Lines file of results."""
  (file,) = out.glob('*.jsonl-00000-of-00001')
  return [json.loads(line) for line in file.read_text().splitlines()]


def trimmed(tokens):
  """Tokens before the first 0."""
  tokens = [int(token) for token in tokens]
  return tokens[: tokens.index(0)] if 0 in tokens else tokens


def main():
  """Prints what was run and the differences, and fails where they are large."""
  folder = pathlib.Path(tempfile.mkdtemp())
  lines = folder / 'lines.tsv'
  lines.write_text(''.join(f'{a}\t{b}\n' for a, b in LINES))
  environment = os.environ | {
    'BYTE_TASK_FILE': str(lines),
    'PYTHONPATH': f'{HERE}:{os.environ.get("PYTHONPATH", "")}',
    'TF_CPP_MIN_LOG_LEVEL': '3',
  }
  for name, (config, network) in CONFIGS.items():
    params = merged_policy(config)
    (folder / name).mkdir()
    step = t5x.save(params, config, folder / f'{name}_checkpoint', 3)
    tokens, scores = own(config, params)
    results = {}
    for kind in ('theirs', 'ours'):
      text = THEIRS.format(network=network) if kind == 'theirs' else OURS
      greedy = GREEDY
      if kind == 'ours':
        greedy = greedy.replace('models.Enc', 't5x_models.Enc')
      head = HEADER.format(script='infer', lengths=LENGTHS) + text
      arguments = (folder / name, step, environment)
      found = {
        'greedy': run('infer', head + greedy + WITH_TOKENS, *arguments),
        'beams': run('infer', head + WITH_TOKENS, *arguments),
        'score': run('infer', head + SCORE, *arguments),
      }
      found = {key: records(out) for key, out in found.items()}
      head = HEADER.format(script='eval', lengths=LENGTHS) + text + greedy
      out = run('eval', head, *arguments)
      metrics = {}
      for file in out.rglob('*metrics.jsonl'):
        for line in file.read_text().splitlines():
          metrics |= json.loads(line)
      found['eval'] = {key: metrics[key] for key in ('bytes', 'score')}
      results[kind] = found
      greedy_tokens = [r['prediction_tokens'] for r in found['greedy']]
      same = [
        trimmed(a) == trimmed(b)
        for a, b in zip(greedy_tokens, tokens, strict=True)
      ]
      difference = np.abs([r['score'] for r in found['score']] - scores).max()
      print(
        json.dumps(
          {
            'model': name,
            'network': kind,
            'greedy_as_ours': f'{sum(same)}/{len(same)}',
            'max_score_difference': float(difference),
            'eval': found['eval'],
            'mean_score_of_ours': float(scores.mean()),
          }
        ),
        flush=True,
      )
      assert all(same) and difference < 1e-4
      assert abs(found['eval']['score'] - scores.mean()) < 1e-4
    beams = [
      [r['prediction_tokens'] for r in results[kind]['beams']]
      for kind in ('theirs', 'ours')
    ]
    same = [a == b for a, b in zip(*beams, strict=True)]
    print(json.dumps({'model': name, 'same_beams': f'{sum(same)}/{len(same)}'}))
    assert all(same)


if __name__ == '__main__':
  main()

"""Strings in, numbers or strings out: what the commands give."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import runs

import perlhf_jax
from perlhf_jax.cli import main
from perlhf_jax.core import errors

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/hf_t5_v1_1'
_PROMPTS = ['todo: gym', 'todo: call mum, buy milk, stamps, fix the lamp', '']
_RESPONSES = ['gym', 'call mum', 'nothing']
_ROWS = [
  {'prompt': prompt, 'response': response}
  for prompt, response in zip(_PROMPTS, _RESPONSES, strict=True)
]


@pytest.fixture(scope='module')
def language_model():
  return perlhf_jax.load(str(_GOLDEN), batch_size=2)


@pytest.fixture(scope='module')
def reward_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('reward') / 'rm'
  no_model = ('--gin.MODEL=None', '--gin.VOCABULARY=None')
  arguments = runs.arguments(
    *('train_reward', 'none', folder, 'demo_rm', *no_model),
    start=_GOLDEN,
    steps=3,
  )
  assert main.run(arguments) == 0
  return folder


def test_logprobs_are_those_of_the_command(language_model, tmp_path):
  rows = runs.score(_GOLDEN, _ROWS, tmp_path)
  np.testing.assert_allclose(
    language_model.logprobs(_PROMPTS, _RESPONSES),
    [row['logprob'] for row in rows],
    rtol=1e-6,
  )


def test_scores_are_those_of_the_command(reward_dir, tmp_path):
  model = perlhf_jax.load(str(reward_dir))
  rows = runs.score(reward_dir, _ROWS, tmp_path)
  np.testing.assert_allclose(
    model.score(_PROMPTS, _RESPONSES), [row['score'] for row in rows], rtol=1e-6
  )
  with pytest.raises(errors.CheckpointError, match='reward model'):
    model.generate(_PROMPTS)
  with pytest.raises(errors.CheckpointError, match='reward model'):
    model.logprobs(_PROMPTS, _RESPONSES)


@pytest.mark.parametrize(
  'options',
  [
    {'temperature': 0.0, 'max_length': 7},
    {'num_samples': 3, 'seed': 5, 'max_length': 6, 'top_k': 9},
    {'num_beams': 3, 'max_length': 5},
  ],
)
def test_answers_are_those_of_the_command(options, language_model, tmp_path):
  lines, output = tmp_path / 'prompts.jsonl', tmp_path / 'responses.jsonl'
  lines.write_text(''.join(json.dumps(row) + '\n' for row in _ROWS))
  flags = [f'--{name}={value}' for name, value in options.items()]
  command = ['generate', f'--checkpoint={_GOLDEN}', '--batch_size=2', *flags]
  assert main.run([*command, f'--input={lines}', f'--output={output}']) == 0
  wanted = [
    json.loads(line)['response'] for line in output.read_text().splitlines()
  ]
  assert language_model.generate(_PROMPTS, **options) == wanted


def test_no_texts_give_nothing(language_model):
  assert language_model.logprobs([], []) == []
  assert language_model.generate([], max_length=3) == []


def test_misuse_is_explained(language_model):
  with pytest.raises(errors.CheckpointError, match='language model'):
    language_model.score(_PROMPTS, _RESPONSES)
  with pytest.raises(errors.DataError, match='3 prompts and 1 responses'):
    language_model.logprobs(_PROMPTS, ['one'])
  with pytest.raises(errors.ConfigError, match='num_beams'):
    language_model.generate(_PROMPTS, num_beams=2, temperature=1.0)
  with pytest.raises(errors.CheckpointError, match='no such folder'):
    perlhf_jax.load('/no/such/folder')


def test_the_package_alone_imports_nothing_heavy():
  code = (
    'import sys, perlhf_jax; perlhf_jax.load; '
    "print({'jax', 'tensorflow', 'seqio'} & set(sys.modules))"
  )
  ran = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert ran.stdout.strip() == 'set()'

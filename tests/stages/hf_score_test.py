"""`perlhf score` on a Hugging Face T5 equals `transformers`."""

import json
import pathlib

import numpy as np
import pytest
import runs

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_ROWS = [
  json.loads(line)
  for line in (_GOLDEN / 'hf_t5_texts.jsonl').read_text().splitlines()
]


@pytest.mark.parametrize(
  'name', ['hf_t5_v1_0', 'hf_t5_v1_1', 'hf_t5_gated_tied']
)
@pytest.mark.parametrize('batch_size', [1, 4])
def test_summed_log_probabilities(name, batch_size, tmp_path):
  golden = np.load(_GOLDEN / f'{name}.npz')['logprobs']
  rows = runs.score(
    _GOLDEN / name, _ROWS, tmp_path, f'--batch_size={batch_size}'
  )
  assert [row['response'] for row in rows] == [r['response'] for r in _ROWS]
  got = [row['logprob'] for row in rows]
  np.testing.assert_allclose(got, golden, atol=1e-4, rtol=0)


def test_reward_model_on_a_hugging_face_base(tmp_path):
  runs.train(
    'train_reward',
    'attention',
    tmp_path / 'rm',
    'demo_rm',
    '--gin.MODEL=None',
    '--gin.VOCABULARY=None',
    start=_GOLDEN / 'hf_t5_v1_1',
    steps=2,
  )
  rows = runs.score(tmp_path / 'rm', _ROWS, tmp_path)
  assert np.isfinite([row['score'] for row in rows]).all()

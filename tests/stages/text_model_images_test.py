"""Images beside strings in Python: what the commands give for the files."""

import pathlib

import golden_pali
import numpy as np
import pytest
import runs
import tiny_pali

import perlhf_jax
from perlhf_jax.core import errors

_GOLDENS = pathlib.Path(__file__).parents[1] / 'golden'
_PROMPTS = ['how many shapes?', 'what colour is it?', 'why?', 'how many?']
_RESPONSES = ['2', 'red', '1', 'none']


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Two PNGs and a JPEG."""
  folder = tmp_path_factory.mktemp('pictures')
  (folder / '0.png').write_bytes(tiny_pali.png(0, 32, 32))
  (folder / '1.jpg').write_bytes(tiny_pali.jpeg(1, 40, 20))
  (folder / '2.png').write_bytes(tiny_pali.png(2, 9, 12))
  return [folder / name for name in ('0.png', '1.jpg', '2.png')]


@pytest.fixture(scope='module')
def rows(files):
  images = [str(files[0]), str(files[1]), [str(files[2])], None]
  return [
    {'prompt': prompt, 'response': response, 'image': image}
    for prompt, response, image in zip(
      _PROMPTS, _RESPONSES, images, strict=True
    )
  ]


@pytest.fixture(scope='module')
def images(files):
  """The same as `rows`: a path, the bytes, an array in a list, and none."""
  pixels = tiny_pali.pixels_of(files[2].read_bytes())
  return [files[0], files[1].read_bytes(), [pixels], None]


@pytest.fixture(scope='module')
def pali_dir(tmp_path_factory):
  return golden_pali.copy(tmp_path_factory.mktemp('golden') / 'pali')


@pytest.fixture(scope='module')
def pali(pali_dir):
  return perlhf_jax.load(str(pali_dir), batch_size=3)


@pytest.fixture(scope='module')
def reward_dir(pali_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp('reward') / 'rm'
  return runs.train_on(
    *('train_reward', 'demo_vqa_rm', pali_dir, folder), tiny=runs.TINY_PALI
  )


def test_logprobs_are_those_of_the_command(
  pali, pali_dir, rows, images, tmp_path
):
  wanted = [row['logprob'] for row in runs.score(pali_dir, rows, tmp_path)]
  ours = pali.logprobs(_PROMPTS, _RESPONSES, images)
  np.testing.assert_allclose(ours, wanted, rtol=1e-6)
  # It looks at them.
  others = pali.logprobs(_PROMPTS, _RESPONSES, images[::-1])
  assert np.abs(np.subtract(ours, others)).min() > 1e-6


def test_scores_are_those_of_the_command(reward_dir, rows, images, tmp_path):
  wanted = [row['score'] for row in runs.score(reward_dir, rows, tmp_path)]
  model = perlhf_jax.load(str(reward_dir))
  ours = model.score(_PROMPTS, _RESPONSES, images)
  np.testing.assert_allclose(ours, wanted, rtol=1e-6)
  with pytest.raises(errors.DataError, match='trained on prompts with images'):
    model.score(_PROMPTS, _RESPONSES)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_answers_are_those_of_the_command(
  temperature, pali, pali_dir, rows, images, tmp_path
):
  wanted = runs.generate(
    *(pali_dir, rows, tmp_path),
    *(f'--temperature={temperature}', '--max_length=6'),
  )
  ours = pali.generate(_PROMPTS, images, temperature=temperature, max_length=6)
  assert ours == [row['response'] for row in wanted]


def test_misuse_is_explained(pali, images, tmp_path):
  def fails(images, wanted, model=pali):
    with pytest.raises(errors.DataError, match=wanted):
      model.logprobs(_PROMPTS, _RESPONSES, images)

  fails(images[:2], '4 prompts and images for 2')
  fails([[images[0]] * 2, None, None, None], 'Prompt 0 has 2 images')
  fails([3.5, *images[1:]], 'Prompt 0 has an image that is float')
  fails([np.zeros((4, 4, 3)), *images[1:]], r'float64 \[4, 4, 3\]')
  fails([None, b'no picture', None, None], 'Prompt 1: .* cannot be decoded')
  fails([None, None, tmp_path / 'no.png', None], 'does not exist')
  text = perlhf_jax.load(str(_GOLDENS / 'hf_t5_v1_1'))
  fails(images, 'Prompt 0 has an image, but the checkpoint reads only', text)
  assert len(text.logprobs(_PROMPTS, _RESPONSES, [None] * 4)) == 4

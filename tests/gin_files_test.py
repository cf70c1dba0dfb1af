"""Every gin file that we ship can be parsed, and every model be built."""

import pathlib

import gin
import pytest

from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config
from perlhf_jax.rl import grpo

ROOT = pathlib.Path(__file__).parents[1]
MODELS = sorted((ROOT / 'gin' / 'models').glob('*.gin'))
OTHERS = sorted(set((ROOT / 'gin').rglob('*.gin')) - set(MODELS))


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch):
  monkeypatch.chdir(ROOT)  # Files include others.
  gin.clear_config()
  yield
  gin.clear_config()


def parse(path, *bindings):
  # Not finalised: what is required has not been given.
  gin.parse_config_files_and_bindings(
    [str(path)], list(bindings), finalize_config=False
  )


@pytest.mark.parametrize('path', MODELS, ids=lambda path: path.stem)
def test_model(path):
  parse(path, 'DROPOUT_RATE = 0.25')
  config = gin.query_parameter('%MODEL').scoped_configurable_fn()
  is_pali = path.stem.startswith('pali')
  wanted = pali_config.PaliConfig if is_pali else t5_config.T5Config
  assert type(config) is wanted
  assert config.dropout_rate == 0.25
  # The UL2 of PaLI-X is the one model with SwiGLU.
  gate = 'silu' if path.stem == 'pali_x_55b' else 'gelu'
  assert config.mlp_activations == (gate, 'linear')
  # Whether the file says which vocabulary it goes with.
  gin.query_parameter('%VOCABULARY')


@pytest.mark.parametrize('path', OTHERS, ids=lambda path: path.stem)
def test_other_file(path):
  parse(path)
  # What a header tells to type must name things that exist.
  for line in path.read_text().splitlines():
    for word in line.split():
      if line.startswith('#') and word.startswith('--gin_file='):
        assert (ROOT / word.removeprefix('--gin_file=')).exists(), word


@pytest.mark.parametrize(
  'name, settings',
  [
    ('grpo', {}),
    ('dr_grpo', {'aggregation': 'constant', 'normalize': None}),
    (
      'gspo',
      {
        'ratio': 'sequence',
        'clip_ratio': 3e-4,
        'clip_ratio_high': 4e-4,
        'minibatches': 4,
      },
    ),
    (
      'cispo',
      {
        'surrogate': 'cispo',
        'aggregation': 'token',
        'clip_ratio': 1.0,
        'clip_ratio_high': 4.0,
        'minibatches': 4,
      },
    ),
    (
      'reinforce_pp',
      {'normalize': 'whiten', 'aggregation': 'token', 'kl_estimator': 'k2'},
    ),
  ],
)
def test_relatives_of_grpo(name, settings):
  parse(ROOT / f'gin/rl/{name}.gin')
  method = gin.query_parameter('%ALGORITHM').scoped_configurable_fn()
  assert method == grpo.Grpo(**settings)
  assert gin.query_parameter('%NUM_SAMPLES') >= method.min_samples

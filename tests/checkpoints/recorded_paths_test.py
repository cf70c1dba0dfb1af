from etils import epath
import pytest

from perlhf_jax.checkpoints import recorded_paths
from perlhf_jax.core import errors


def test_paths_are_recorded_absolute_and_relative(tmp_path, monkeypatch):
  (tmp_path / 'runs/sft').mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  run = epath.Path(tmp_path / 'runs/rm')
  assert recorded_paths.describe('runs/sft', run) == {
    'path': str(tmp_path / 'runs/sft'),
    'relative_path': '../sft',
  }
  named = recorded_paths.describe('runs/sft', run, 'vit_path')
  assert set(named) == {'vit_path', 'relative_vit_path'}


@pytest.mark.parametrize(
  ('path', 'model_dir', 'relative'),
  [
    ('gs://b/runs/sft', 'gs://b/runs/rm', '../sft'),
    ('gs://b/runs/sft', 'gs://c/runs/rm', None),
    ('gs://b/runs/sft', '/runs/rm', None),
    ('/runs/sft', 'gs://b/runs/rm', None),
  ],
)
def test_relative_paths_stay_in_their_bucket(path, model_dir, relative):
  recorded = recorded_paths.describe(path, epath.Path(model_dir))
  assert recorded['path'] == path
  assert recorded.get('relative_path') == relative


def test_a_tree_that_moved_is_looked_for_beside_the_run(tmp_path):
  recorded = {'path': '/gone/sft', 'relative_path': '../sft'}
  here = epath.Path(tmp_path / 'rm')
  assert recorded_paths.candidates(recorded, here) == ['/gone/sft']
  (tmp_path / 'sft').mkdir()
  places = recorded_paths.candidates(recorded, here)
  assert places == [str(tmp_path / 'sft'), '/gone/sft']
  at_home = {**recorded, 'path': str(tmp_path / 'sft')}
  assert recorded_paths.candidates(at_home, here) == [str(tmp_path / 'sft')]


def _load(recorded, contents):
  """Loads from two places; a content of None is missing."""

  def load_from(place):
    if contents[place] is None:
      raise errors.CheckpointError(f'Nothing at {place}.')
    return contents[place]

  return recorded_paths.load(recorded, list(contents), load_from, str)


def test_the_fingerprint_decides_what_is_loaded():
  recorded = {'path': 'far', 'fingerprint': 'right'}
  assert _load(recorded, {'near': 'right', 'far': 'wrong'}) == 'right'
  assert _load(recorded, {'near': 'wrong', 'far': 'right'}) == 'right'
  assert _load(recorded, {'near': None, 'far': 'right'}) == 'right'
  # Format 1 had none for reward models.
  assert _load({'path': 'far'}, {'near': 'any', 'far': 'right'}) == 'any'
  with pytest.raises(errors.CheckpointError) as error:
    _load(recorded, {'near': 'wrong', 'far': None})
  assert str(error.value) == (
    'near is another model (fingerprint wrong). Nothing at far.'
  )

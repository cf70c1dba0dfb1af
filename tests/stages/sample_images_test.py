from etils import epath
import jax
import numpy as np
import pytest
import tiny_pali

from perlhf_jax.core import errors
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import images
from perlhf_jax.stages import sample_images


def write(folder, *found, size=8):
  # Without a data set: only images are asked for.
  examples = object.__new__(examples_lib.Examples)
  examples.images = images.ImageColumn([image] for image in found)
  examples.image_spec = images.ImageSpec(size)
  records = [{'prompt': 'how many?'} for _ in found]
  return sample_images.write(records, examples, epath.Path(folder))


def names(records):
  return [name for each in records for name in each['images']]


def test_a_name_is_of_what_the_image_shows(tmp_path):
  path = tmp_path / 'picture.png'
  path.write_bytes(tiny_pali.png(0, 16, 16))
  (before,) = names(write(tmp_path, str(path)))
  path.write_bytes(tiny_pali.png(1, 16, 16))
  (after,) = names(write(tmp_path, str(path)))
  assert before != after
  same = names(write(tmp_path, tiny_pali.png(1, 16, 16), str(path)))
  assert same == [after, after]
  assert names(write(tmp_path, str(path), size=4)) != [after]
  np.testing.assert_array_equal(
    images.decode((tmp_path / after).read_bytes(), 8),
    images.decode(str(path), 8),
  )


def test_a_write_that_fails_leaves_no_image(tmp_path, monkeypatch):
  picture = tiny_pali.png(0, 16, 16)

  def fill_the_disk(path, content):
    path.open('wb').write(content[:20])
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as context:
    context.setattr(type(epath.Path(tmp_path)), 'write_bytes', fill_the_disk)
    with pytest.raises(errors.CheckpointError, match='No space left'):
      write(tmp_path, picture)
  assert not [*tmp_path.glob('**/*.png')]
  (name,) = names(write(tmp_path, picture))
  images.decode((tmp_path / name).read_bytes(), 8)


def test_hosts_other_than_the_first_read_no_image(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  records = write(tmp_path, str(tmp_path / 'on the first host.png'))
  assert records == [{'prompt': 'how many?'}]
  assert not [*tmp_path.iterdir()]

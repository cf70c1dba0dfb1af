import numpy as np
import pytest
import tiny_pali

from perlhf_jax.core import errors
from perlhf_jax.data import images

SPEC = images.ImageSpec(size=6, count=2)


@pytest.fixture(name='files')
def _files(tmp_path):
  """Paths of three images in files, of other sizes too."""
  contents = [
    tiny_pali.png(0),
    tiny_pali.jpeg(1, 12, 12),
    tiny_pali.png(2, 3, 9),
  ]
  paths = []
  for number, content in enumerate(contents):
    path = tmp_path / f'{number}.{"jpg" if number == 1 else "png"}'
    path.write_bytes(content)
    paths.append(str(path))
  return paths


def test_pixels_of_the_right_size_are_those_of_the_file(files):
  content = tiny_pali.png(0)
  expected = tiny_pali.pixels_of(content)
  np.testing.assert_array_equal(images.decode(content, 6), expected)
  np.testing.assert_array_equal(images.decode(files[0], 6), expected)


def test_resizing_averages_what_it_shrinks():
  # Antialiased: of stripes no stripe is left. Of a plain image, the color.
  stripes = np.zeros((32, 32, 3), np.uint8)
  stripes[:, ::2] = 200
  import tensorflow as tf

  pixels = images.decode(tf.io.encode_png(stripes).numpy(), 4)
  np.testing.assert_allclose(pixels[:, 1:-1], 100, atol=12)
  plain = np.full((5, 9, 3), (10, 20, 30), np.uint8)
  pixels = images.decode(tf.io.encode_png(plain).numpy(), 4)
  np.testing.assert_array_equal(
    pixels, np.broadcast_to((10, 20, 30), (4, 4, 3))
  )


def test_proportions_are_not_kept():
  import tensorflow as tf

  halves = np.zeros((8, 16, 3), np.uint8)
  halves[:, 8:] = 255
  pixels = images.decode(tf.io.encode_png(halves).numpy(), 4)
  assert (pixels[:, :1] == 0).all()
  assert (pixels[:, -1:] == 255).all()


def test_grey_and_transparent_images_have_three_channels():
  import tensorflow as tf

  for channels in (1, 4):
    content = tf.io.encode_png(np.full((6, 6, channels), 7, np.uint8)).numpy()
    np.testing.assert_array_equal(images.decode(content, 6), 7)


def test_batches(files):
  by_value = tiny_pali.png(3)
  batches = [
    [files[:2], [by_value], []],
    [[], [files[2]], [files[0], by_value]],
  ]
  decoded = list(images.pixel_batches(batches, SPEC))
  assert len(decoded) == 2
  for rows, batch in zip(batches, decoded, strict=True):
    assert batch['images'].shape == (3, 2, 6, 6, 3)
    assert batch['images'].dtype == np.uint8
    for row, pixels, mask in zip(
      rows, batch['images'], batch['image_mask'], strict=True
    ):
      assert mask.tolist() == [True] * len(row) + [False] * (2 - len(row))
      for image, actual in zip(row, pixels, strict=False):
        np.testing.assert_array_equal(actual, images.decode(image, 6))
      assert not pixels[len(row) :].any()


def test_order_is_kept_over_many_batches():
  contents = [tiny_pali.png(seed) for seed in range(9)]
  batches = ([[contents[(b * 4 + i) % 9]] for i in range(4)] for b in range(20))
  spec = images.ImageSpec(6)
  expected = [tiny_pali.pixels_of(content) for content in contents]
  for b, batch in enumerate(images.pixel_batches(batches, spec)):
    for i in range(4):
      np.testing.assert_array_equal(
        batch['images'][i, 0], expected[(b * 4 + i) % 9]
      )


def test_batches_come_as_they_are_made():
  def endless():
    while True:
      yield [[tiny_pali.png(0)]]

  stream = images.pixel_batches(endless(), images.ImageSpec(6))
  assert next(stream)['images'].shape == (1, 1, 6, 6, 3)
  stream.close()
  assert list(images.pixel_batches([], SPEC)) == []


def test_attach():
  batches = [{'x': np.zeros(1)}, {'x': np.ones(1)}]
  assert list(images.attach(iter(batches), [], None)) == batches
  rows = [[[tiny_pali.png(0)]], [[]]]
  both = list(images.attach(iter(batches), rows, images.ImageSpec(6)))
  assert [b['x'][0] for b in both] == [0, 1]
  assert [b['image_mask'].tolist() for b in both] == [[[True]], [[False]]]


def test_an_image_that_goes_away_is_named(files, tmp_path):
  gone = str(tmp_path / 'gone.png')
  with pytest.raises(errors.DataError, match=r'gone\.png'):
    list(images.pixel_batches([[[files[0]], [gone]]], SPEC))


def test_problems(files, tmp_path):
  half = tmp_path / 'half.png'
  half.write_bytes(tiny_pali.png(0, 40, 40)[:-300])
  text = tmp_path / 'text.png'
  text.write_text('no image')
  gone = str(tmp_path / 'gone.png')
  cut = tiny_pali.jpeg(0, 40, 40)[:200]
  found = images.find_problems(
    [*files, str(half), str(text), gone, cut, str(tmp_path)]
  )
  assert set(found) == {str(half), str(text), gone, cut, str(tmp_path)}
  assert 'cannot be decoded' in found[str(half)]
  assert 'text.png cannot be decoded' in found[str(text)]
  assert found[gone] == f'the image {gone} does not exist'
  assert 'the image of 200 bytes cannot be decoded' in found[cut]


def test_values_are_told_from_paths():
  for content in tiny_pali.png(0), tiny_pali.jpeg(0):
    assert images.from_task(content) == content
  assert images.from_task(b'folder/a b.png') == 'folder/a b.png'
  assert images.from_task('gs://b/ä.png'.encode()) == 'gs://b/ä.png'
  assert images.from_task(b'\xff\xfe junk') == b'\xff\xfe junk'


def test_distinct_images_are_held_once(files):
  rows = [[files[0]], [files[1], files[0]], [], [files[0]]]
  column = images.ImageColumn(rows)
  assert column.images == [files[0], files[1]]
  assert [list(column[i]) for i in range(len(column))] == rows

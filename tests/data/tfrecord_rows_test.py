import gzip

import pytest
import tensorflow as tf

from perlhf_jax.core import errors
from perlhf_jax.data import tfrecord_rows


def example(index):
  result = tf.train.Example()
  features = result.features.feature
  features['names'].bytes_list.value.extend([b'a', f'b{index}'.encode()])
  features['id'].int64_list.value.append(index)
  features['share'].float_list.value.append(0.5)
  features['nothing'].SetInParent()
  return result.SerializeToString()


def write(path, records, compression=''):
  with tf.io.TFRecordWriter(str(path), compression) as writer:
    for record in records:
      writer.write(record)


@pytest.mark.parametrize('compression', ['', 'GZIP'])
def test_rows_of_plain_and_compressed_files(tmp_path, compression):
  path = str(tmp_path / 'episodes-00000-of-00020')
  write(path, [example(0), example(1)], compression)
  rows = list(tfrecord_rows.read(path))
  assert [row.origin for row in rows] == [f'{path}#0', f'{path}#1']
  assert rows[1].record == {
    'names': [b'a', b'b1'],
    'id': [1],
    'share': [0.5],
    'nothing': [],
  }
  assert not any(row.problem for row in rows)


def test_compressed_by_another_program(tmp_path):
  write(tmp_path / 'plain', [example(7)])
  path = tmp_path / 'zipped'
  path.write_bytes(gzip.compress((tmp_path / 'plain').read_bytes()))
  assert [row.record['id'] for row in tfrecord_rows.read(str(path))] == [[7]]


def test_empty_file_has_no_rows(tmp_path):
  write(tmp_path / 'empty', [])
  assert list(tfrecord_rows.read(str(tmp_path / 'empty'))) == []


def test_record_that_is_no_example_is_named_and_the_next_is_read(tmp_path):
  path = str(tmp_path / 'file')
  write(path, [example(0), b'\xff\xff', example(2)])
  rows = list(tfrecord_rows.read(path))
  assert [bool(row.problem) for row in rows] == [False, True, False]
  assert 'not a tf.train.Example' in rows[1].problem
  assert rows[1].record == {}
  assert rows[2].origin == f'{path}#2'


def test_changed_byte_is_named(tmp_path):
  path = tmp_path / 'file'
  write(path, [example(0)])
  first = path.stat().st_size
  write(path, [example(0), example(1), example(2)])
  content = bytearray(path.read_bytes())
  content[first + 20] ^= 1
  path.write_bytes(content)
  rows = list(tfrecord_rows.read(str(path)))
  assert rows[0].record['id'] == [0]
  assert rows[1].origin == f'{path}#1'
  assert 'damaged' in rows[1].problem and 'lost' in rows[1].problem
  assert len(rows) == 2


@pytest.mark.parametrize('compression', ['', 'GZIP'])
@pytest.mark.parametrize('cut', [15, 40])
def test_cut_file_is_named(tmp_path, compression, cut):
  path = tmp_path / 'file'
  write(path, [example(0), example(1)], compression)
  path.write_bytes(path.read_bytes()[:-cut])
  *whole, last = tfrecord_rows.read(str(path))
  assert last.problem and last.origin == f'{path}#{len(whole)}'
  assert not any(row.problem for row in whole)


def test_missing_file(tmp_path):
  with pytest.raises(errors.DataError, match='nowhere cannot be read'):
    list(tfrecord_rows.read(str(tmp_path / 'nowhere')))

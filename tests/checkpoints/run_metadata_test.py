import json

import pytest
import tiny_metadata

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors

METADATA = tiny_metadata.METADATA


def test_json_and_back():
  fields = json.loads(json.dumps(run_metadata.to_json(METADATA)))
  assert run_metadata.from_json(fields, 'here') == METADATA


def test_checkpoints_of_format_1_are_read():
  fields = run_metadata.to_json(METADATA)
  del fields['module'], fields['versions']
  for name in 'data', 'eval_data', 'settings', 'changes':
    del fields[name]
  fields['format_version'] = 1
  fields['policy']['reward_checkpoints'] = ['/a/rm']
  saved = run_metadata.from_json(fields, 'here')
  assert saved.module is None
  assert saved.policy['reward_checkpoints'] == [{'path': '/a/rm'}]
  assert saved.data is saved.eval_data is saved.settings is None
  assert not saved.changes


def test_checkpoints_that_do_not_say_so_have_no_batches_by_length():
  fields = run_metadata.to_json(METADATA)
  del fields['data_order']['length_buckets']
  assert run_metadata.from_json(fields, 'here') == METADATA


def test_a_newer_format_is_refused():
  fields = {**run_metadata.to_json(METADATA), 'format_version': 99}
  with pytest.raises(errors.CheckpointError, match=r'here .*Upgrade'):
    run_metadata.from_json(fields, 'here')

import dataclasses
import json
import logging

import pytest
import tiny_metadata

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.models import lora

METADATA = tiny_metadata.METADATA
_ORDER = {'batch_size': 8, 'data_seed': 0, 'init_seed': 0}


def _with_policy(**changed):
  return dataclasses.replace(METADATA, policy={**METADATA.policy, **changed})


def test_json_and_back():
  fields = json.loads(json.dumps(run_metadata.to_json(METADATA)))
  assert run_metadata.from_json(fields, 'here') == METADATA


def test_checkpoints_of_format_1_are_read_and_go_on(caplog):
  fields = run_metadata.to_json(METADATA)
  del fields['module'], fields['versions']
  fields['format_version'] = 1
  fields['policy']['reward_checkpoints'] = ['/a/rm']
  saved = run_metadata.from_json(fields, 'here')
  assert saved.module is None
  assert saved.policy['reward_checkpoints'] == [{'path': '/a/rm'}]
  run_metadata.check_same(saved, METADATA, 'step 3')
  assert 'versions' not in caplog.text


def test_checkpoints_that_do_not_say_so_have_no_batches_by_length():
  fields = run_metadata.to_json(METADATA)
  del fields['data_order']['length_buckets']
  assert run_metadata.from_json(fields, 'here') == METADATA


def test_a_newer_format_is_refused():
  fields = {**run_metadata.to_json(METADATA), 'format_version': 99}
  with pytest.raises(errors.CheckpointError, match=r'here .*Upgrade'):
    run_metadata.from_json(fields, 'here')


def test_where_anything_lies_is_of_no_account():
  moved = {'path': '/b/sft', 'relative_path': '../sft', 'fingerprint': 'f0'}
  given = dataclasses.replace(
    _with_policy(
      reference=moved,
      reward_checkpoints=[{'path': '/b/rm', 'fingerprint': 'f1'}],
    ),
    base=moved,
    module='my_package.my_tasks',
  )
  run_metadata.check_same(METADATA, given, 'step 3')


@pytest.mark.parametrize(
  ('given', 'wanted'),
  [
    (_with_policy(kl_beta=0.1), 'policy.kl_beta is 0.05, this run has 0.1'),
    (
      dataclasses.replace(METADATA, lora=lora.LoraConfig(rank=4)),
      'lora.rank is 8, this run has 4',
    ),
    (
      dataclasses.replace(
        METADATA,
        data_order=_ORDER | {'length_buckets': 0},
      ),
      'data_order.part is [0, 2], this run has None',
    ),
    (
      dataclasses.replace(
        METADATA,
        data_order=METADATA.data_order
        | {'length_buckets': 8, 'length_window': 100},
      ),
      'data_order.length_buckets is 0, this run has 8',
    ),
    (
      dataclasses.replace(
        METADATA, base={'path': '/a/sft', 'fingerprint': 'f9'}
      ),
      "base is {'path': '/a/sft', 'fingerprint': 'f0'}, this run has",
    ),
    (
      _with_policy(reward_checkpoints=[]),
      'policy.reward_checkpoints is [',
    ),
    (
      _with_policy(reward_checkpoints=[{'path': 'x', 'fingerprint': 'f2'}]),
      'policy.reward_checkpoints is [',
    ),
    (dataclasses.replace(METADATA, task='b'), 'task is my_prompts, this'),
  ],
)
def test_another_run_is_refused_by_what_differs(given, wanted):
  with pytest.raises(errors.CheckpointError) as error:
    run_metadata.check_same(METADATA, given, 'step 3')
  message = str(error.value)
  assert 'already holds step 3 of another run: its ' + wanted in message
  assert 'another MODEL_DIR' in message


def test_other_versions_are_logged(caplog):
  caplog.set_level(logging.WARNING)
  newer = {'jax': '0.11.0', 'flax': '1.0'}
  given = dataclasses.replace(METADATA, versions=newer)
  run_metadata.check_same(METADATA, given, 'step 3')
  assert 'Going on with other versions: jax 0.10.2 -> 0.11.0.' in caplog.text

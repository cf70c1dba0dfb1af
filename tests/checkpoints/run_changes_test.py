"""A run that is not what it was is refused, accepted or said, and recorded."""

import dataclasses
import json
import logging

from etils import epath
import pytest
import tiny_metadata

from perlhf_jax.checkpoints import run_changes
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.models import lora

METADATA = tiny_metadata.METADATA
STEP = epath.Path('/a/run/checkpoints/3')
_ORDER = {'batch_size': 8, 'data_seed': 0, 'init_seed': 0}
_RATE = 'settings.policy_optimizer.learning_rate'


@pytest.fixture(autouse=True)
def log(caplog):
  caplog.set_level(logging.INFO)
  return caplog


def _with(name, **changed):
  """The metadata with entries of one of its mappings changed."""
  return dataclasses.replace(
    METADATA, **{name: {**getattr(METADATA, name), **changed}}
  )


def _with_rate(rate):
  optimizer = METADATA.settings['policy_optimizer'] | {'learning_rate': rate}
  return _with('settings', policy_optimizer=optimizer)


def _with_model(**changed):
  model = dataclasses.replace(METADATA.model, **changed)
  return dataclasses.replace(METADATA, model=model)


def _going_on(given, saved=METADATA, **options):
  # As a step says it: lists in the place of tuples.
  fields = json.loads(json.dumps(run_metadata.to_json(saved)))
  saved = run_metadata.from_json(fields, 'here')
  return run_changes.going_on(saved, given, STEP, **options)


def _refusal(given, **options):
  with pytest.raises(errors.CheckpointError) as error:
    _going_on(given, **options)
  return str(error.value)


def test_the_same_run_goes_on_without_a_word(log):
  assert _going_on(METADATA) == METADATA
  assert not log.text


def test_where_anything_lies_is_of_no_account(log):
  moved = {'path': '/b/sft', 'relative_path': '../sft', 'fingerprint': 'f0'}
  given = dataclasses.replace(
    _with(
      'policy',
      reference=moved,
      reward_checkpoints=[{'path': '/b/rm', 'fingerprint': 'f1'}],
    ),
    base=moved,
    module='my_package.my_tasks',
  )
  assert _going_on(given) == given
  assert not log.text


_OTHER_ORDER = dataclasses.replace(
  METADATA, data_order=_ORDER | {'length_buckets': 0}
)
_BY_LENGTH = _with('data_order', length_buckets=8, length_window=100)
_FUNCTION = {'function': 'a.b', 'code': 'c1', 'bound': {}}


@pytest.mark.parametrize(
  ('given', 'wanted'),
  [
    (_with('policy', kl_beta=0.1), 'policy.kl_beta is 0.05, this run has 0.1'),
    (_OTHER_ORDER, 'data_order.part is [0, 2], this run has None'),
    (_BY_LENGTH, 'data_order.length_buckets is 0, this run has 8'),
    (
      _with('policy', reward_checkpoints=[]),
      "policy.reward_checkpoints is [{'path': '/a/rm', 'fingerprint': 'f1'}]",
    ),
    (
      _with(
        'policy', reward_checkpoints=[{'path': '/a/rm', 'fingerprint': 'f2'}]
      ),
      'policy.reward_checkpoints is [',
    ),
    (dataclasses.replace(METADATA, task='b'), 'task is my_prompts, this'),
    (_with_rate(1e-2), f'{_RATE} is 0.001, this run has 0.01'),
    (
      _with('settings', controller={'class': 'AdaptiveKl', 'target': 6}),
      'settings.controller is None, this run has {',
    ),
    (
      _with('settings', reward_functions=[_FUNCTION]),
      'settings.reward_functions is [',
    ),
    (_with('data', rows=[50]), 'data.rows is [48], this run has [50]'),
    (
      _with('data', fingerprint='d1'),
      'data.fingerprint is d0, this run has d1',
    ),
    (_with_model(dropout_rate=0.3), 'model.dropout_rate is 0.0, this'),
  ],
)
def test_what_decides_the_run_is_refused_unless_it_is_accepted(
  given, wanted, log
):
  message = _refusal(given)
  said = f'MODEL_DIR /a/run already holds step 3 of another run: its {wanted}'
  assert said in message
  assert 'another MODEL_DIR' in message
  assert '--gin.ACCEPT_CHANGES=True' in message
  went_on = _going_on(given, accept=True)
  name = wanted.partition(' is ')[0]
  assert 'Going on from step 3' in log.text and f'{name}: ' in log.text
  # It is recorded, behind what was accepted before.
  first, second = went_on.changes
  assert first == METADATA.changes[0]
  assert second['step'] == 3 and len(second[name]) == 2
  assert dataclasses.replace(went_on, changes=()) == dataclasses.replace(
    given, changes=()
  )
  # The next start is of the run as it is now.
  assert _going_on(given, saved=went_on).changes == went_on.changes


@pytest.mark.parametrize('accept', [False, True])
@pytest.mark.parametrize(
  ('given', 'wanted'),
  [
    (
      dataclasses.replace(METADATA, lora=lora.LoraConfig(rank=4)),
      'lora.rank is 8, this run has 4',
    ),
    (dataclasses.replace(METADATA, lora=None), 'lora is {'),
    (
      dataclasses.replace(
        METADATA, base={'path': '/a/sft', 'fingerprint': 'f9'}
      ),
      "base is {'path': '/a/sft', 'fingerprint': 'f0'}, this run has",
    ),
    (
      _with('policy', reference={'path': '/a/sft', 'fingerprint': 'f9'}),
      'policy.reference is {',
    ),
    (dataclasses.replace(METADATA, objective='grpo'), 'objective is rloo'),
    (_with_model(emb_dim=20), 'model.emb_dim is 16, this run has 20'),
  ],
)
def test_other_weights_are_always_refused(given, wanted, accept):
  message = _refusal(given, accept=accept)
  assert 'already holds step 3 of another run: its ' + wanted in message
  assert 'another MODEL_DIR' in message and 'ACCEPT_CHANGES' not in message


def test_all_that_differs_is_named():
  given = dataclasses.replace(
    _with_rate(1e-2), data={**METADATA.data, 'rows': [50], 'fingerprint': 'd1'}
  )
  message = _refusal(given)
  for name in 'data.rows', 'data.fingerprint', _RATE:
    assert f'its {name} is ' in message
  assert 'the data that this run started with' in message


def test_other_validation_data_is_said_and_recorded(log):
  went_on = _going_on(_with('eval_data', fingerprint='e1'))
  assert 'are not comparable' in log.text
  assert 'eval_data.fingerprint: e0 -> e1' in log.text
  assert went_on.changes[-1] == {
    'step': 3,
    'eval_data.fingerprint': ['e0', 'e1'],
  }


def test_what_saves_memory_is_said(log):
  given = _with_model(remat_policy='full', attention_block=4)
  assert _going_on(given) == given
  assert 'model.remat_policy: none -> full' in log.text


def test_a_setting_that_another_version_knows_is_said(log):
  optimizer = METADATA.settings['policy_optimizer'] | {'momentum': 0.5}
  given = _with('settings', policy_optimizer=optimizer)
  for saved, new in ((METADATA, given), (given, METADATA)):
    assert _going_on(new, saved=saved) == new
    assert 'settings.policy_optimizer.momentum' in log.text
    log.clear()


def test_steps_without_fingerprints_go_on_with_a_message(log):
  saved = dataclasses.replace(
    METADATA, data=None, eval_data=None, settings=None, changes=()
  )
  assert _going_on(METADATA, saved=saved).changes == []
  assert 'Step 3 was saved by a version that recorded no fingerprints' in (
    log.text
  )
  # What they did record is compared.
  with pytest.raises(errors.CheckpointError, match=r'kl_beta is 0\.05'):
    _going_on(_with('policy', kl_beta=0.1), saved=saved)


def test_reward_models_of_format_1_are_known_by_path():
  saved = _with('policy', reward_checkpoints=[{'path': '/a/rm'}])
  _going_on(METADATA, saved=saved)
  other = [{'path': '/b/rm', 'fingerprint': 'f1'}]
  with pytest.raises(errors.CheckpointError, match='reward_checkpoints'):
    _going_on(_with('policy', reward_checkpoints=other), saved=saved)


def test_other_versions_are_logged(log):
  newer = {'jax': '0.11.0', 'flax': '1.0'}
  assert _going_on(dataclasses.replace(METADATA, versions=newer))
  assert 'Going on with other versions: jax 0.10.2 -> 0.11.0.' in log.text

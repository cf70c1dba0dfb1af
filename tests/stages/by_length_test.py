"""Padding to few shapes changes no number, and runs go on as they began."""

import json
import logging
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny_models
import tiny_roles

from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.data import example_order
from perlhf_jax.data import examples as examples_lib
from perlhf_jax.data import feature_converters
from perlhf_jax.data import input_pipeline
from perlhf_jax.data import kinds
from perlhf_jax.data import token_columns
from perlhf_jax.data import vocabularies
from perlhf_jax.models import t5
from perlhf_jax.rl import step as step_lib
from perlhf_jax.stages import policy_evaluation
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import train_reward
from perlhf_jax.stages import train_sft
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

COUNT, LIMITS = 24, (70, 36)


def _column(rng, most):
  rows = []
  for _ in range(COUNT):
    length = int(np.clip(rng.lognormal(2.5, 0.8), 2, most))
    tokens = rng.integers(2, tiny_roles.CONFIG.vocab_size, length)
    rows.append(np.append(tokens[:-1], 1).astype(np.int32))
  return token_columns.TokenColumn(rows)


def _examples(kind, length_buckets):
  """Examples of random tokens and ragged lengths, for `tiny_roles`."""
  rng = np.random.default_rng(0)
  columns = {
    name: rng.integers(0, 2, COUNT).astype(np.float32)
    if name == 'label'
    else _column(rng, LIMITS[name != 'inputs'])
    for name in kind.required
  }
  return examples_lib.Examples(
    name='ragged',
    split='train',
    columns=columns,
    origins=[''] * COUNT,
    converter=feature_converters.Converter(kind, *LIMITS),
    order=example_order.ExampleOrder([COUNT]),
    batch_size=4,
    vocabulary=vocabularies.byte_vocabulary(),
    length_buckets=length_buckets,
    length_window=6,
  )


@pytest.fixture(scope='module')
def reward_role():
  return tiny_roles.reward_role(11, own_params=True)


def _loss(objective, reward_role):
  if objective is kinds.SFT:
    model = t5.T5(tiny_roles.CONFIG)
    variables = {'params': tiny_models.params(tiny_roles.CONFIG)}
    return train_sft.make_loss(model, 0.1, 1e-3), variables
  model, variables = reward_role
  return train_reward.make_loss(model, objective, 0.1), variables


@pytest.mark.parametrize(
  'objective',
  [kinds.SFT, kinds.PAIRWISE, kinds.POINTWISE],
  ids=lambda kind: kind.name,
)
def test_losses_and_gradients_do_not_depend_on_the_padding(
  objective, reward_role
):
  loss, variables = _loss(objective, reward_role)
  few, one = (_examples(objective, buckets) for buckets in (2, 0))

  @jax.jit
  def run(variables, batch):
    def total(variables):
      output = loss(variables, {}, batch, None)
      return output.loss_sum / output.weight_sum, output

    (value, output), gradient = jax.value_and_grad(total, has_aux=True)(
      variables
    )
    return value, output.metric_sums, gradient

  shapes = set()
  for step in range(3):
    rows = few.train_rows(step)
    padded, whole = few.text_batch(rows), one.text_batch(rows)
    shapes.add(tuple(x.shape for x in padded.values()))
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
      run(variables, padded),
      run(variables, whole),
    )
  assert len(shapes) > 1


@pytest.mark.parametrize(
  'objective',
  [kinds.PAIRWISE, kinds.POINTWISE],
  ids=lambda kind: kind.name,
)
def test_evaluation_by_length_gives_the_scores_in_order(objective, reward_role):
  model, variables = reward_role
  scorer = reward_scoring.make_scorer(
    model, partitioning.make_mesh(), objective
  )
  by_length, mixed = (
    reward_scoring.collect(
      scorer,
      variables,
      {},
      input_pipeline.eval_batches(_examples(objective, buckets), 5),
    )
    for buckets in (2, 0)
  )
  assert set(by_length) == set(mixed)
  for name, column in mixed.items():
    assert len(column) == COUNT
    np.testing.assert_allclose(by_length[name], column, rtol=0, atol=1e-5)
  metrics = (
    reward_scoring.reward_metrics(x, objective) for x in (by_length, mixed)
  )
  first, second = metrics
  assert first == pytest.approx(second, abs=1e-5, nan_ok=True)


def test_answers_come_in_order_and_do_not_depend_on_batches(monkeypatch):
  seen = []
  roll = step_lib.Rollout.__call__

  def watched(*args):
    seen.append(roll(*args))
    return seen[-1]

  monkeypatch.setattr(step_lib.Rollout, '__call__', watched)
  models, trainable, frozen = tiny_roles.make()
  rollout = tiny_roles.make_rollout(models)
  answers = [
    policy_evaluation.answer(
      rollout,
      None,
      jax.tree.map(jnp.asarray, trainable),
      frozen,
      _examples(kinds.PROMPTS, buckets),
      batch_size=batch_size,
      mesh=partitioning.make_mesh(),
      decode=tiny_roles.decode,
    )
    for buckets, batch_size in ((2, 5), (0, 8))
  ]
  examples = _examples(kinds.PROMPTS, 0)
  prompts = [
    tiny_roles.decode(examples.example(row)['inputs']) for row in range(COUNT)
  ]
  for each in answers:
    assert list(each.prompts[:: tiny_roles.RESPONSES]) == prompts
    assert each.responses == answers[0].responses
    for name, column in answers[0].columns.items():
      np.testing.assert_allclose(each.columns[name], column, atol=1e-5)
  # The second evaluation has three batches, with the rows in order.
  k1, k3 = _kl_by_loops(jax.tree.map(np.asarray, seen[-3:]))
  np.testing.assert_allclose(answers[1].columns['kl_k1'], k1, atol=1e-5)
  np.testing.assert_allclose(answers[1].columns['kl_k3'], k3, atol=1e-5)
  assert np.abs(np.subtract(k1, k3)).max() > 0.01


def _kl_by_loops(batches):
  k1, k3 = [], []
  for samples in batches:
    for b, r in np.ndindex(*samples.response_mask.shape[:2]):
      gaps = [
        float(samples.logprobs[b, r, t]) - float(samples.ref_logprobs[b, r, t])
        for t in range(samples.response_mask[b, r].sum())
      ]
      k1.append(sum(gaps))
      k3.append(sum(math.exp(-gap) - 1 + gap for gap in gaps))
  return k1, k3


def _ragged_task(folder):
  """A module that registers `ragged_rm`, pairs of ragged lengths."""
  rng = np.random.default_rng(1)
  rows = [
    {
      'q': 'p' * int(np.clip(rng.lognormal(2.5, 0.9), 1, 60)) + str(i),
      'a': 'a' * int(np.clip(rng.lognormal(2, 0.6), 1, 14)),
      'b': 'b' * int(np.clip(rng.lognormal(2, 0.6), 1, 14)),
    }
    for i in range(48)
  ]
  runs.write_rows(folder / 'ragged.jsonl', rows)
  (folder / 'ragged_tasks.py').write_text(
    'from perlhf_jax.data import preference_tasks\n'
    "preference_tasks.add_preference_task('ragged_rm', 'pairwise', lambda r: {"
    "'inputs': r['q'], 'chosen': r['a'], 'rejected': r['b']},"
    " files='ragged.jsonl', splits={'train': 0.8, 'validation': 0.2})\n"
  )


_FLAGS = (
  "--gin.MIXTURE_OR_TASK_MODULE='ragged_tasks'",
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 16}",
  '--gin.LENGTH_BUCKETS=8',
  '--gin.LENGTH_WINDOW=3',
  '--gin.INITIAL_CHECKPOINT_PATH=None',
)


@pytest.fixture(scope='module')
def ragged(tmp_path_factory):
  folder = tmp_path_factory.mktemp('ragged')
  _ragged_task(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PERLHF_DATA_DIR', str(folder))
    patch.syspath_prepend(str(folder))
    yield folder


def _train(path, *more, steps=6):
  runs.train(
    'train_reward', 'none', path, 'ragged_rm', *_FLAGS, *more, steps=steps
  )


def _weights(path):
  step = step_files.find_step(str(path))
  return tree_paths.flatten(step_files.read_trainable(step))


def test_records_have_the_padding_and_the_log_the_shapes(ragged, caplog):
  caplog.set_level(logging.INFO)
  _train(ragged / 'by_length')
  assert 'of the computed tokens are padding' in caplog.text
  assert 'prompt_tokens 8x' in caplog.text
  _train(ragged / 'mixed', '--gin.LENGTH_BUCKETS=0')
  padding = {
    name: [
      record['padding']
      for record in runs.metrics(ragged / name)
      if record['split'] == 'train'
    ]
    for name in ('by_length', 'mixed')
  }
  assert len(padding['by_length']) == 3
  assert all(0 < share < 1 for share in padding['by_length'])
  assert np.mean(padding['by_length']) < 0.8 * np.mean(padding['mixed'])


def test_a_run_of_before_goes_on_in_its_order(ragged, caplog):
  chosen, before = ragged / 'chosen', ragged / 'before'
  _train(chosen, '--gin.LENGTH_BUCKETS=0', steps=3)
  shutil.copytree(chosen, before)
  step = before / 'checkpoints' / '3'
  path = step / 'metadata' / 'metadata'
  fields = json.loads(path.read_text())
  assert fields['data_order'].pop('length_buckets') == 0
  # Neither were there digests.
  assert fields.pop('digests')
  (step / 'digests.json').unlink()
  path.write_text(json.dumps(fields))
  _train(chosen, '--gin.LENGTH_BUCKETS=0')
  assert 'without batches by length' not in caplog.text
  caplog.set_level(logging.INFO)
  _train(before)
  assert 'started without batches by length' in caplog.text
  again = _weights(before)
  for name, leaf in _weights(chosen).items():
    np.testing.assert_array_equal(again[name], leaf)


def test_a_run_by_length_is_not_continued_in_another_order(ragged, capsys):
  path = ragged / 'kept'
  _train(path, steps=1)
  for flag, told in (
    ('LENGTH_BUCKETS=0', 'length_buckets is 8, this run has 0'),
    ('LENGTH_WINDOW=4', 'length_window is 3, this run has 4'),
  ):
    arguments = runs.arguments(
      'train_reward', 'none', path, 'ragged_rm', *_FLAGS, f'--gin.{flag}'
    )
    assert main.run(arguments) == 2
    assert f'data_order.{told}' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('flag', 'told'),
  [
    ('LENGTH_BUCKETS=9', 'LENGTH_BUCKETS is 9; it must be a whole number from'),
    ('LENGTH_WINDOW=0', 'LENGTH_WINDOW is 0; it must be a whole number of at'),
  ],
)
def test_impossible_options_stop_before_anything_starts(
  tmp_path, capsys, flag, told
):
  arguments = runs.arguments(
    'train_sft', 'none', tmp_path / 'run', 'demo_sft', f'--gin.{flag}'
  )
  assert main.run(arguments) == 2
  assert told in ' '.join(capsys.readouterr().err.split())

"""A run that is started again with other inputs notices, whatever changed."""

import shutil

import numpy as np
import pytest
import runs
import seqio

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.training import checkpoint_manager
from perlhf_jax.training import step_files

_MODULE = """
from perlhf_jax.data import preference_tasks

preference_tasks.add_preference_task(
  'changing_sft',
  'sft',
  dict,
  {{'train': 'rows.jsonl', 'validation': 'valid.jsonl'}},
  base_dir={folder!r},
)


def commas(prompts, responses):
  return [response.count(',') for response in responses]
"""
_GIN = """
from __gin__ import dynamic_registration
import changing_inputs

REWARD_FUNCTIONS = (@changing_inputs.commas,)
"""
_ROWS = [{'inputs': f'say {i}', 'targets': f'{i}, {i}'} for i in range(40)]


class _World:
  """A folder with data, a module, and runs in it."""

  def __init__(self, folder):
    self.folder = folder
    self.module = folder / 'changing_inputs.py'
    self.module.write_text(_MODULE.format(folder=str(folder)))
    (folder / 'commas.gin').write_text(_GIN)
    self.write(_ROWS)
    runs.write_rows(folder / 'valid.jsonl', _ROWS[:8])

  def write(self, rows):
    runs.write_rows(self.folder / 'rows.jsonl', rows)

  def arguments(self, kind, *more, steps=2):
    """The command line of the run that is called `kind`."""
    common = "--gin.MIXTURE_OR_TASK_MODULE='changing_inputs'", *more
    path = self.folder / kind
    if kind == 'sft':
      return runs.arguments(
        'train_sft', 'none', path, 'changing_sft', *common, steps=steps
      )
    return runs.arguments(
      'train_policy',
      'attention',
      path,
      'changing_sft',
      '--gin_file=gin/rl/rloo.gin',
      f'--gin_file={self.folder / "commas.gin"}',
      f"--gin.REWARD_CHECKPOINT='{self.folder / 'rm'}'",
      '--gin.EVAL_EXAMPLES=4',
      *common,
      start=self.folder / 'sft',
      steps=steps,
    )

  def refusal(self, capsys, kind, *more):
    """What is said of a start that is refused."""
    before = sorted(p for p in (self.folder / kind).rglob('*'))
    assert main.run(self.arguments(kind, *more, steps=3)) == 2
    assert sorted(p for p in (self.folder / kind).rglob('*')) == before
    return capsys.readouterr().err

  def metadata(self, kind):
    step = step_files.find_step(str(self.folder / kind))
    fields = step_files.read_metadata(step)
    return run_metadata.from_json(fields, str(step))


def _train_reward(folder, path, steps):
  runs.train(
    'train_reward',
    'attention',
    path,
    'demo_rm',
    '--gin.EVAL_EXAMPLES=8',
    start=folder / 'sft',
    steps=steps,
  )


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp('changing')
  world = _World(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    assert main.run(world.arguments('sft')) == 0
    _train_reward(folder, folder / 'rm', steps=1)
    assert main.run(world.arguments('policy')) == 0
    yield world
  seqio.TaskRegistry.remove('changing_sft')


@pytest.fixture(autouse=True)
def unchanged(world):
  """Puts back what a test has changed."""
  source = world.module.read_text()
  yield
  world.write(_ROWS)
  world.module.write_text(source)


@pytest.mark.parametrize('kind', ['sft', 'policy'])
@pytest.mark.parametrize(
  ('rows', 'wanted'),
  [
    ([*_ROWS[:-1], {'inputs': 'else', 'targets': 'b'}], 'data.fingerprint is '),
    (_ROWS[::-1], 'data.fingerprint is '),
    (_ROWS[:-1], 'data.rows is [40], this run has [39]'),
  ],
)
def test_other_rows_are_refused(world, capsys, kind, rows, wanted):
  world.write(rows)
  message = world.refusal(capsys, kind)
  assert f'holds step 2 of another run: its {wanted}' in message
  assert 'rows were changed, moved, added or left out' in message
  assert 'ACCEPT_CHANGES' in message and 'Traceback' not in message


@pytest.mark.parametrize(
  ('kind', 'setting', 'wanted'),
  [
    ('sft', 'LEARNING_RATE=2e-3', 'settings.optimizer.learning_rate is 0.001'),
    ('sft', 'Optimizer.b2=0.9', 'settings.optimizer.b2 is 0.999'),
    ('sft', 'train_sft.z_loss=0.1', 'settings.z_loss is 0.0'),
    ('policy', 'LEARNING_RATE=2e-3', 'settings.policy_optimizer.learning_rate'),
    ('policy', 'TRAIN_PART=(0, 2)', 'data_order.part is None'),
    ('policy', 'RewardShaping.clip=3.0', 'settings.shaping.clip is None'),
    (
      'policy',
      'RewardSources.model_weight=2.0',
      'settings.model_weight is 1.0',
    ),
    ('policy', 'KL_BETA=0.2', 'policy.kl_beta is 0.05, this run has 0.2'),
  ],
)
def test_other_settings_are_refused(world, capsys, kind, setting, wanted):
  message = world.refusal(capsys, kind, f'--gin.{setting}')
  assert f'its {wanted}' in message and 'ACCEPT_CHANGES' in message


def test_another_reward_model_at_the_same_place_is_refused(world, capsys):
  reward, kept = world.folder / 'rm', world.folder / 'kept'
  shutil.copytree(reward, kept)
  try:
    _train_reward(world.folder, reward, steps=2)
    message = world.refusal(capsys, 'policy')
  finally:
    shutil.rmtree(reward)
    kept.rename(reward)
  assert 'its policy.reward_checkpoints is [' in message


def test_another_reward_function_of_the_same_name_is_refused(world, capsys):
  source = world.module.read_text()
  world.module.write_text(source.replace("count(',')", "count('.')"))
  message = world.refusal(capsys, 'policy')
  assert 'its settings.reward_functions is [' in message
  assert 'code is a digest of the file' in message


def test_a_comment_a_period_and_a_moved_file_are_no_changes(
  world, capsys, tmp_path
):
  world.module.write_text('# Mine.\n' + world.module.read_text())
  (tmp_path / 'away.gin').write_text(_GIN)
  policy = tmp_path / 'policy'
  shutil.copytree(world.folder / 'policy', policy)
  more = (
    f"--gin.MODEL_DIR='{policy}'",
    f'--gin_file={tmp_path / "away.gin"}',
    '--gin.LOG_PERIOD=1',
    '--gin.CHECKPOINT_PERIOD=1',
  )
  assert main.run(world.arguments('policy', *more, steps=3)) == 0
  assert runs.metrics(policy)[-1]['step'] == 3


def test_what_is_accepted_is_recorded_and_said(world, tmp_path, capsys):
  sft = tmp_path / 'sft'
  shutil.copytree(world.folder / 'sft', sft)
  world.write(_ROWS[::-1])
  changed = f"--gin.MODEL_DIR='{sft}'", '--gin.LEARNING_RATE=2e-3'
  accept = '--gin.ACCEPT_CHANGES=True'
  assert main.run(world.arguments('sft', *changed, accept, steps=3)) == 0
  fields = step_files.read_metadata(step_files.find_step(str(sft)))
  (change,) = fields['changes']
  assert change['step'] == 2
  assert change['settings.optimizer.learning_rate'] == [1e-3, 2e-3]
  assert len(change['data.fingerprint']) == 2
  # From there on it is the run that it is now.
  assert main.run(world.arguments('sft', *changed, steps=4)) == 0
  fields = step_files.read_metadata(step_files.find_step(str(sft)))
  assert fields['changes'] == [change]
  capsys.readouterr()
  assert main.run(['inspect', f'--checkpoint={sft}']) == 0
  (line,) = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith('changed:')
  ]
  assert 'after step 2: ' in line
  assert 'settings.optimizer.learning_rate 0.001 -> 0.002' in line


def test_steps_without_fingerprints_go_on_with_a_message(
  world, tmp_path, caplog, monkeypatch
):
  to_json = run_metadata.to_json

  def format_3(metadata):
    fields = to_json(metadata)
    for name in 'data', 'eval_data', 'settings', 'changes':
      del fields[name]
    return {**fields, 'format_version': 3}

  sft = tmp_path / 'sft'
  arguments = f"--gin.MODEL_DIR='{sft}'", '--gin.LEARNING_RATE=2e-3'
  with monkeypatch.context() as patch:
    patch.setattr(run_metadata, 'to_json', format_3)
    assert main.run(world.arguments('sft', arguments[0], steps=1)) == 0
  assert main.run(world.arguments('sft', *arguments)) == 0
  assert 'recorded no fingerprints of data and settings' in caplog.text
  fields = step_files.read_metadata(step_files.find_step(str(sft)))
  assert fields['settings']['optimizer']['learning_rate'] == 2e-3


def test_what_is_recorded_is_what_a_loop_over_the_rows_finds(world):
  metadata = world.metadata('sft')
  assert metadata.data['rows'] == [40] and metadata.eval_data['rows'] == [8]
  policy = world.metadata('policy')
  # Of the policy the prompts alone.
  assert policy.data['rows'] == [40]
  assert policy.data['fingerprint'] != metadata.data['fingerprint']


def test_weights_that_are_nan_stop_everything_that_reads_them(
  world, tmp_path, capsys
):
  """`score`, `generate`, `evaluate` and training name the parameter."""
  step = step_files.find_step(str(world.folder / 'sft'))
  trainable = step_files.read_trainable(step)
  flat = tree_paths.flatten(trainable)
  name = 'params/decoder/decoder_norm/scale'
  flat[name] = np.where(np.arange(16) == 3, np.nan, flat[name])
  bad = tmp_path / 'bad'
  fields = step_files.read_metadata(step)
  checkpoint_manager.write_weights(
    step_files.absolute(str(bad)), 2, tree_paths.unflatten(flat), fields
  )
  lines = runs.write_rows(
    tmp_path / 'in.jsonl', [{'prompt': 'a', 'response': 'b'}]
  )
  files = f'--input={lines}', f'--output={tmp_path / "out.jsonl"}'
  for arguments in (
    ['score', f'--checkpoint={bad}', *files],
    ['generate', f'--checkpoint={bad}', *files],
    [
      *('evaluate', f'--checkpoint={bad}', '--batch_size=8'),
      "--gin.MIXTURE_OR_TASK_NAME='changing_sft'",
    ],
    runs.arguments(
      'train_reward', 'attention', tmp_path / 'rm', 'demo_rm', start=bad
    ),
  ):
    assert main.run(arguments) == 2
    message = capsys.readouterr().err
    assert 'NaN or infinite, in decoder/decoder_norm/scale (1)' in message
    assert str(bad) in message and 'Traceback' not in message
  assert not (tmp_path / 'out.jsonl').exists()

"""`perlhf COMMAND --check` finds mistakes and starts nothing."""

import os

from etils import epath
import pytest
import runs

from perlhf_jax.cli import main
from perlhf_jax.plan import check_report
from perlhf_jax.training import run_lock


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('check')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(path)
    runs.train('train_sft', 'none', 'runs/sft', 'demo_sft', steps=2)
  return path


@pytest.fixture(autouse=True)
def _workplace(folder, monkeypatch):
  monkeypatch.chdir(folder)


def policy(*more):
  return runs.arguments(
    'train_policy',
    'attention',
    'runs/policy',
    'demo_prompts',
    '--gin_file=gin/rl/reinforce.gin',
    '--gin.REWARD_CHECKPOINT=None',
    '--check',
    *more,
    start='runs/sft',
  )


def test_a_run_that_can_start(capsys, folder):
  arguments = runs.arguments(
    'train_reward', 'attention', 'runs/rm', 'demo_rm', start='runs/sft'
  )
  assert main.run([*arguments, '--check']) == 0
  out = capsys.readouterr().out
  assert 'mesh: (data, fsdp, tensor) = (1, 1, 1) on 1 device(s)' in out
  assert 'writes: runs/rm\n' in out
  assert 'runs/sft is an SFT model, full tuning, step 2' in out
  assert 'reads: runs/sft\n' in out
  assert 'LoRA: 12 layers adapted' in out
  assert 'demo_rm/train: pairwise, first 48 rows read' in out
  assert 'demo_rm/validation: pairwise' in out
  assert 'weights and optimizer states take' in out
  assert out.endswith('Nothing was started.\n')
  assert not (folder / 'runs' / 'rm').exists()


def test_a_folder_that_another_run_writes(capsys, folder):
  arguments = runs.arguments('train_sft', 'none', 'runs/sft', 'demo_sft')
  with run_lock.RunLock(epath.Path('runs/sft')).held():
    assert main.run([*arguments, '--check']) == 2
    error = capsys.readouterr().err
  assert 'MODEL_DIR runs/sft is being written by another run' in error
  assert f'process {os.getpid()}' in error
  assert main.run([*arguments, '--check']) == 0


def test_for_a_slice_that_is_not_here(capsys):
  # 16 devices divide a batch of 16, and 1,024 rows of the embedding.
  flags = ('--topology=v5e-16', '--gin.BATCH_SIZE=16')
  arguments = runs.arguments('train_sft', 'none', 'runs/a', 'demo_sft')
  assert main.run([*arguments, '--check', *flags]) == 0
  out = capsys.readouterr().out
  assert '(16, 1, 1) on 16 device(s) of v5e-16, batches of 16' in out
  assert 'of the 15.8 GiB of a device of v5e-16' in out


def test_all_mistakes_are_listed(capsys):
  flags = (
    '--num_devices=3',
    "--gin.MIXTURE_OR_TASK_NAME='demo_prompt'",
    '--gin.INITIAL_CHECKPOINT_PATH="runs/nowhere"',
  )
  assert main.run(policy(*flags)) == 2
  printed = capsys.readouterr()
  assert 'perlhf: error: 4 mistakes:' in printed.err
  for wanted in (
    'BATCH_SIZE 8 is not divisible by 3',
    'runs/nowhere',
    'demo_prompts',
    'The policy has no reward',
  ):
    assert wanted in printed.err
  assert 'Nothing was started' not in printed.out


def test_rates_of_adapters_that_are_not_there(capsys):
  flags = '--gin.Optimizer.lora_b_ratio=16', '--check'
  arguments = runs.arguments('train_sft', 'none', 'runs/a', 'demo_sft')
  assert main.run([*arguments, *flags]) == 2
  assert 'Optimizer.lora_b_ratio is 16' in capsys.readouterr().err
  assert main.run(policy(*flags, '--gin.LORA=None')) == 2
  assert 'Optimizer.lora_b_ratio is 16' in capsys.readouterr().err


def test_a_model_that_does_not_fit(capsys):
  # An embedding of 41 GB, and the optimizer's moments, on devices of 16 GiB.
  flags = (
    '--gin.T5Config.vocab_size=10_000_000',
    '--gin.T5Config.emb_dim=1024',
    '--topology=v5e-16',
    '--gin.BATCH_SIZE=16',
  )
  arguments = runs.arguments('train_sft', 'none', 'runs/a', 'demo_sft')
  assert main.run([*arguments, '--check', *flags]) == 2
  assert 'Not enough memory: weights and optimizer' in capsys.readouterr().err


def test_a_run_that_goes_on(capsys):
  arguments = runs.arguments('train_sft', 'none', 'runs/sft', 'demo_sft')
  assert main.run([*arguments, '--check']) == 0
  assert 'runs/sft holds step 2, from which the run' in capsys.readouterr().out
  shorter = runs.arguments('train_sft', 'none', 'runs/sft', 'demo_sft', steps=1)
  assert main.run([*shorter, '--check']) == 2
  assert 'already holds step 2' in capsys.readouterr().err
  other = runs.arguments('train_sft', 'none', 'runs/sft', 'demo_vqa_sft')
  assert main.run([*other, '--check']) == 2
  assert 'already holds another run' in capsys.readouterr().err


def test_evaluation_scores_and_responses(capsys, folder):
  assert main.run(['evaluate', '--checkpoint=runs/sft', '--check']) == 0
  out = capsys.readouterr().out
  assert 'writes: runs/sft\n' in out and 'demo_sft/test: sft, first' in out
  runs.write_rows(folder / 'in.jsonl', [{'prompt': 'a'}])
  lines = ('--checkpoint=runs/sft', '--input=in.jsonl', '--output=out.jsonl')
  assert main.run(['generate', *lines, '--check']) == 0
  out = capsys.readouterr().out
  assert 'in.jsonl has 1 lines' in out
  assert 'reads: in.jsonl\n' in out and 'writes: out.jsonl\n' in out
  assert main.run(['score', *lines, '--check']) == 2
  assert "in.jsonl:1 has no string 'response'" in capsys.readouterr().err
  assert not (folder / 'out.jsonl').exists()


def test_what_does_not_answer_is_skipped(capsys, monkeypatch):
  monkeypatch.setattr(
    check_report,
    'unreachable',
    lambda path: f'{path}: no answer' if path and '://' in path else None,
  )
  flags = (
    "--gin.MODEL_DIR='gs://bucket/policy'",
    "--gin.REWARD_CHECKPOINT='gs://bucket/rm'",
  )
  assert main.run(policy(*flags)) == 0
  out = capsys.readouterr().out
  assert 'writes: gs://bucket/policy\n' in out
  assert 'skipped  MODEL_DIR: gs://bucket/policy: no answer' in out
  assert 'skipped  REWARD_CHECKPOINT: gs://bucket/rm: no answer' in out


def test_an_address_that_never_answers(monkeypatch):
  class Hangs:
    def __init__(self, path):
      self.path = path

    def exists(self):
      import time

      time.sleep(2)

  monkeypatch.setattr(check_report.epath, 'Path', Hangs)
  monkeypatch.setattr(check_report, '_REMOTE_SECONDS', 0.1)
  assert 'did not answer' in check_report.unreachable('gs://bucket/a')
  assert check_report.unreachable('runs/a') is None
  assert check_report.unreachable(None) is None


def test_flags_of_a_check_need_it(capsys):
  arguments = runs.arguments('train_sft', 'none', 'runs/a', 'demo_sft')
  assert main.run([*arguments, '--num_devices=4']) == 2
  assert 'give --check too' in capsys.readouterr().err

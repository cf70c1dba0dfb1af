"""`perlhf tasks` and `perlhf train_vocabulary`."""

import seqio

from perlhf_jax import main
from perlhf_jax.data import vocabularies


def test_every_task_is_listed_with_source_licence_and_files(capsys):
  assert main.run(['tasks']) == 0
  lines = capsys.readouterr().out.splitlines()
  names = {line.split()[0] for line in lines if not line.startswith(' ')}
  for name in (
    *('demo_sft', 'demo_rm', 'demo_rm_pointwise', 'demo_prompts'),
    *('taskmaster_coffee_rm', 'taskmaster_ticketing_sft'),
    *('hh_harmless_rm', 'hh_helpful_prompts', 'tldr_rm', 'bolt_prompts'),
    *('shp_rm', 'shp_askvet_rm', 'android_control_sft', 'nlvr_rm'),
    *('android_control_screens_rm', 'vqav2_rm', 'easy_vqa_sft', 'demo_vqa_rm'),
  ):
    at = next(i for i, line in enumerate(lines) if line.startswith(f'{name} '))
    assert 'licence: ' in lines[at + 1]
    assert lines[at + 2].startswith('  source: ')
    assert lines[at + 3].startswith('  files:  ')
  assert names <= set(seqio.TaskRegistry.names())
  assert 'vqav2_rm (pointwise, images; train, validation, test)' in lines
  assert 'android_control_rm (pointwise; train, validation, test)' in lines


def test_a_vocabulary_of_a_task_encodes_any_text(tmp_path):
  path = tmp_path / 'new' / 'spiece.model'
  command = ['train_vocabulary', '--task=demo_sft', f'--output={path}']
  assert main.run([*command, '--vocab_size=400']) == 0
  vocabulary = vocabularies.sentencepiece_vocabulary(str(path))
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
  text = 'todo: gym Rent\nagent:  é ☕'
  assert vocabulary.decode(vocabulary.encode(text)) == text
  # Pieces are words of the task, not letters.
  assert len(vocabulary.encode('rent, call')) <= 4


def test_vocabulary_of_an_unknown_task(tmp_path, capsys):
  path = tmp_path / 'spiece.model'
  command = ['train_vocabulary', '--task=demo_stf', f'--output={path}']
  assert main.run(command) == 2
  assert 'demo_sft' in capsys.readouterr().err
  assert not path.exists()


def test_vocabulary_that_is_too_small(tmp_path, capsys):
  path = tmp_path / 'spiece.model'
  command = ['train_vocabulary', '--task=demo_sft', f'--output={path}']
  assert main.run([*command, '--vocab_size=5']) == 2
  assert 'demo_sft' in capsys.readouterr().err

"""`perlhf tasks` and `perlhf train_vocabulary`."""

import seqio

from perlhf_jax.cli import main
from perlhf_jax.data import vocabularies


def test_every_task_is_listed_with_source_licence_and_files(capsys):
  assert main.run(['tasks']) == 0
  lines = capsys.readouterr().out.splitlines()
  names = {
    line.split()[0]
    for line in lines
    if '(' in line and not line.startswith(' ') and '(mixture; ' not in line
  }
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
  assert not any('not stated' in line for line in lines if 'my_' not in line)
  assert 'vqav2_rm (pointwise, images; train, validation, test)' in lines
  assert 'android_control_rm (pointwise; train, validation, test)' in lines


def test_mixtures_are_listed_with_their_parts(capsys):
  assert main.run(['tasks']) == 0
  lines = capsys.readouterr().out.splitlines()
  at = lines.index(
    'all_prompts_text (mixture; prompts; train, validation, test)'
  )
  assert lines[at + 1].startswith('  draws:  bolt_prompts 14.3%, hh_harmless')


_MODULE = """
import seqio
from perlhf_jax.data import preference_tasks


def parse(record):
  return {'inputs': record['q'], 'targets': record['a']}


def rate(task):
  return 2.0


for name, more in (
  ('my_bare_sft', {}),
  ('my_sft', {
    'source': 'our annotators', 'licence': 'CC0', 'base_dir': '/data/mine',
  }),
):
  preference_tasks.add_preference_task(
    name, 'sft', parse, files='my.jsonl', **more)
seqio.MixtureRegistry.add('my_mix', [('my_bare_sft', 3.0), ('my_sft', 1.0)])
seqio.MixtureRegistry.add('my_rates', [('my_bare_sft', rate), ('my_sft', 1.0)])
"""


def test_what_is_not_stated_of_ones_own_tasks_is_said(
  tmp_path, monkeypatch, capsys
):
  (tmp_path / 'my_listed_tasks.py').write_text(_MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  try:
    assert main.run(['tasks', '--module=my_listed_tasks']) == 0
  finally:
    for name in 'my_bare_sft', 'my_sft':
      seqio.TaskRegistry.remove(name)
    for name in 'my_mix', 'my_rates':
      seqio.MixtureRegistry.remove(name)
  text = capsys.readouterr().out
  for wanted in (
    'my_bare_sft (sft; train, validation)\n  licence: not stated\n'
    '  source: not stated\n  files:  my.jsonl\n',
    'my_sft (sft; train, validation)\n  licence: CC0\n'
    '  source: our annotators\n  files:  my.jsonl in /data/mine\n',
    'draws:  my_bare_sft 75.0%, my_sft 25.0%\n',
    'draws:  my_bare_sft (rate my_listed_tasks.rate), my_sft (rate 1.0)\n',
  ):
    assert wanted in text
  assert text.splitlines()[-1].startswith(
    'Not stated: the source or the licence of my_bare_sft. State them with '
  )


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

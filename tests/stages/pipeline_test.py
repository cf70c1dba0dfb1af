"""SFT, reward models, evaluation and scoring, as a user runs them."""

import json
import logging as python_logging
import re
import shutil

import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loading
from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.core import strict_json
from perlhf_jax.core import tree_paths
from perlhf_jax.stages import score as score_lib
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files

PROMPT = 'todo: gym Rent tea Call mail'
ROWS = [
  {'prompt': PROMPT, 'response': 'rent, call', 'id': 7},
  {'prompt': PROMPT, 'response': 'gym'},
  {'prompt': 'todo: Lamp', 'response': 'lamp, post, oil'},
  {'prompt': 'x' * 60, 'response': 'é'},
  {'prompt': '', 'response': 'rent, ' * 9},
]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Folders `sft`, `sft_lora`, `lora`, `full` and `point` of tiny runs."""
  root = tmp_path_factory.mktemp('runs')
  runs.train('train_sft', 'none', root / 'sft', 'demo_sft')
  sft = root / 'sft'
  keep_start = '--gin.DatasetConfig.truncate_prompt="keep_start"'
  runs.train(
    *('train_sft', 'attention', root / 'sft_lora', 'demo_sft', keep_start),
    start=sft,
  )
  for tuning, name in (('attention', 'lora'), ('none', 'full')):
    runs.train('train_reward', tuning, root / name, 'demo_rm', start=sft)
  runs.train(
    'train_reward',
    'attention',
    root / 'point',
    'demo_rm_pointwise',
    '--gin.LoopConfig.accumulation_steps=2',
    start=root / 'sft_lora',
  )
  return root


def test_a_run_leaves_what_is_promised(root):
  records = runs.metrics(root / 'lora')
  assert [r['step'] for r in records if r['split'] == 'train'] == [2, 4, 6]
  assert [r['step'] for r in records if r['split'] == 'eval'] == [3, 6]
  assert {'loss', 'pairwise_accuracy', 'grad_norm'} <= set(records[0])
  assert list((root / 'lora' / 'events' / 'train').iterdir())
  assert 'LORA_RANK = 8' in (root / 'lora' / 'config.gin').read_text()
  summary = json.loads((root / 'lora' / 'summary.json').read_text())
  assert summary['examples_per_second'] > 0
  assert summary['step_memory_bytes'] > 0
  full = json.loads((root / 'full' / 'summary.json').read_text())
  assert full['trainable_fraction'] == 1.0
  assert 0 < summary['trainable_fraction'] < 0.5


def test_adapter_checkpoints_hold_no_backbone(root):
  step = step_files.find_step(str(root / 'lora'))
  assert set(step_files.read_trainable(step)) == {'lora', 'heads'}


def test_frozen_weights_are_bit_identical_after_training(root):
  before = loading.load_merged(str(root / 'sft'), partitioning.make_mesh())
  after = loading.load(str(root / 'lora'), partitioning.make_mesh())
  assert before.fingerprint == after.backbone_fingerprint
  flat = tree_paths.flatten(after.params)
  for path, leaf in tree_paths.flatten(before.params).items():
    np.testing.assert_array_equal(leaf, flat[path])


def test_full_tuning_changes_every_kernel(root):
  before = tree_paths.flatten(
    loading.load_merged(str(root / 'sft'), partitioning.make_mesh()).params
  )
  step = step_files.find_step(str(root / 'full'))
  after = tree_paths.flatten(step_files.read_trainable(step)['params'])
  assert set(before) == set(after)
  for path, leaf in before.items():
    assert (leaf != after[path]).any(), path


@pytest.mark.parametrize('name', ['lora', 'full', 'point'])
def test_scores_do_not_depend_on_batch_order_or_padding(root, tmp_path, name):
  whole = runs.score(root / name, ROWS, tmp_path)
  assert [{k: v for k, v in r.items() if k != 'score'} for r in whole] == ROWS
  scores = np.array([row['score'] for row in whole])
  assert np.ptp(scores) > 1e-3
  for batch_size in (1, 2, 3):
    again = runs.score(
      root / name, ROWS, tmp_path, f'--batch_size={batch_size}'
    )
    got = [row['score'] for row in again]
    np.testing.assert_allclose(got, scores, atol=1e-5, rtol=0)
  backwards = runs.score(root / name, ROWS[::-1], tmp_path)
  got = [row['score'] for row in backwards][::-1]
  np.testing.assert_allclose(got, scores, atol=1e-5, rtol=0)
  # Longer limits pad more, and cut nothing of the short rows.
  padded = runs.score(root / name, ROWS[:3], tmp_path, '--prompt_length=500')
  got = [row['score'] for row in padded]
  np.testing.assert_allclose(got, scores[:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', ['sft', 'sft_lora'])
def test_log_probabilities_sum_to_one_over_the_vocabulary(root, tmp_path, name):
  rows = runs.score(root / name, ROWS, tmp_path, '--batch_size=2')
  assert all(row['logprob'] < 0 for row in rows)
  # The response 'ab' is the response 'a' with another ending.
  ones = runs.score(
    root / name,
    [{'prompt': PROMPT, 'response': chr(c)} for c in range(32, 127)],
    tmp_path,
  )
  assert sum(np.exp(row['logprob']) for row in ones) < 1


@pytest.mark.parametrize(
  ('name', 'kept'), [('sft', PROMPT[-8:]), ('sft_lora', PROMPT[:8])]
)
def test_a_long_prompt_is_cut_as_in_training(root, tmp_path, name, kept):
  row = {'prompt': PROMPT, 'response': 'gym'}
  rows = [row, {**row, 'prompt': kept}]
  # A byte is a token, and EOS one more.
  cut, whole = runs.score(root / name, rows, tmp_path, '--prompt_length=9')
  assert cut['logprob'] == pytest.approx(whole['logprob'], abs=1e-5)
  assert cut != runs.score(root / name, [row], tmp_path)[0]


@pytest.mark.parametrize('name', ['lora', 'sft'])
def test_a_list_of_responses_gets_a_list_of_scores(root, tmp_path, name):
  rows = [
    {'prompt': PROMPT, 'response': [ROWS[1]['response'], 'lamp', 'gym']},
    ROWS[2],
    {'prompt': PROMPT, 'response': ['rent']},
  ]
  flat = [
    {'prompt': row['prompt'], 'response': response}
    for row in rows
    for response in np.atleast_1d(row['response']).tolist()
  ]
  key = 'logprob' if name == 'sft' else 'score'
  scored = runs.score(root / name, rows, tmp_path, '--batch_size=2')
  assert [{k: v for k, v in row.items() if k != key} for row in scored] == rows
  several, one, single = [row[key] for row in scored]
  assert isinstance(one, float) and len(several) == 3 and len(single) == 1
  wanted = [row[key] for row in runs.score(root / name, flat, tmp_path)]
  got = [*several, one, *single]
  np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)


def test_what_generate_writes_can_be_scored(root, tmp_path):
  rows = [{'prompt': PROMPT}, {'prompt': 'todo: Lamp', 'id': 3}]
  answered = runs.generate(
    root / 'sft', rows, tmp_path, '--num_samples=3', '--max_length=5'
  )
  scored = runs.score(root / 'lora', answered, tmp_path)
  assert [len(row['score']) for row in scored] == [3, 3]
  assert [row['response'] for row in scored] == [
    r['response'] for r in answered
  ]


def test_a_score_that_is_not_finite_names_its_line(
  root, tmp_path, capsys, monkeypatch
):
  def scores(examples, *args, **kwargs):
    return np.where(np.arange(len(examples)) == 3, np.nan, 0.5)

  monkeypatch.setattr(score_lib, 'score_examples', scores)
  rows = [{'prompt': 'a', 'response': ['b', 'c']}] * 2
  source = runs.write_rows(tmp_path / 'in.jsonl', rows)
  target = tmp_path / 'out.jsonl'
  files = f'--input={source}', f'--output={target}'
  assert main.run(['score', f'--checkpoint={root / "lora"}', *files]) == 2
  message = capsys.readouterr().err
  assert f'{source}:2: ' in message and 'score nan, which is not' in message
  assert not target.exists()


def test_metrics_that_are_undefined_are_null_with_a_reason(root, caplog):
  caplog.set_level(python_logging.WARNING, 'absl')
  point = f'--checkpoint={root / "point"}'
  assert main.run(['evaluate', point, '--gin.EVAL_EXAMPLES=1']) == 0
  text = (root / 'point' / 'eval.json').read_text()
  result = strict_json.loads(text)
  for name, why in (
    ('roc_auc', r'all 1 labels are [01]'),
    ('balanced_accuracy', r'all 1 labels are [01]'),
    ('score_length_correlation', 'all scores are equal'),
  ):
    assert result[name] is None
    message = f'{name} is undefined, and null in eval.json: {why}.'
    assert [m for m in caplog.messages if re.fullmatch(message, m)]
  assert 0 <= result['accuracy'] <= 1


def test_evaluate_writes_what_it_measured(root):
  assert main.run(['evaluate', f'--checkpoint={root / "lora"}']) == 0
  result = json.loads((root / 'lora' / 'eval.json').read_text())
  assert result['task'] == 'demo_rm' and result['split'] == 'test'
  assert result['examples'] == 1000 and result['step'] == 6
  assert 0 <= result['pairwise_accuracy'] <= 1
  best = f'--checkpoint={root / "point" / "checkpoints" / "best"}'
  assert main.run(['evaluate', best, '--batch_size=100']) == 0
  result = json.loads((root / 'point' / 'eval.json').read_text())
  assert {'roc_auc', 'accuracy', 'balanced_accuracy'} <= set(result)


def test_evaluation_does_not_depend_on_the_batch_size(root):
  results = []
  for batch_size in (64, 7):
    assert (
      main.run(
        [
          'evaluate',
          f'--checkpoint={root / "lora"}',
          f'--batch_size={batch_size}',
          '--gin.EVAL_EXAMPLES=100',
        ]
      )
      == 0
    )
    results.append(json.loads((root / 'lora' / 'eval.json').read_text()))
  assert results[0]['pairwise_accuracy'] == results[1]['pairwise_accuracy']
  np.testing.assert_allclose(results[0]['loss'], results[1]['loss'], rtol=1e-5)


def _evaluate(checkpoint, output, *more):
  """Evaluates a checkpoint; returns what the command wrote."""
  command = ['evaluate', f'--checkpoint={checkpoint}', f'--output={output}']
  assert main.run([*command, *more]) == 0
  return json.loads(output.read_text())


def test_candidates_are_ranked_by_their_scores(root, tmp_path):
  texts = [
    ['rent, call', 'gym', 'oil'],
    ['gym', 'lamp, post'],
    ['tea', 'é', 'rent, rent', 'mail'],
  ]
  rows = [
    {'prompt': PROMPT, 'responses': each, 'num_correct': 1, 'subset': subset}
    for each, subset in zip(texts, ('Chat', 'Chat', 'Math'), strict=True)
  ]
  source = runs.write_rows(tmp_path / 'candidates.jsonl', rows)
  members = root / 'lora', root / 'full'
  before = (root / 'lora' / 'eval.json').exists()
  result = _evaluate(
    members[0],
    tmp_path / 'best_of.json',
    f'--input={source}',
    f'--gin.ENSEMBLE="{members[1]}"',
  )
  assert (root / 'lora' / 'eval.json').exists() == before
  assert result['input'] == str(source) and result['examples'] == 3
  lines = [{'prompt': PROMPT, 'response': each} for each in texts]
  scores = [
    [line['score'] for line in runs.score(member, lines, tmp_path)]
    for member in members
  ]

  def right(lines):
    return [float(np.argmax(line) == 0) for line in lines]

  def wanted(lines):
    chat_1, chat_2, math_1 = right(lines)
    return ((chat_1 + chat_2) / 2 + math_1) / 2

  assert result['score'] == wanted(scores[0])
  assert result['subsets']['Math']['standard_error'] is None
  together = result['ensemble']
  assert [m['score'] for m in together['members']] == [*map(wanted, scores)]
  by_line = [np.array(each) for each in zip(*scores, strict=True)]
  for name, combined in {
    'mean': [x.mean(axis=0) for x in by_line],
    'min': [x.min(axis=0) for x in by_line],
    'lower_bound': [x.mean(axis=0) - x.std(axis=0) for x in by_line],
  }.items():
    assert together[name]['score'] == wanted(combined), name
  spread = np.concatenate([x.std(axis=0) for x in by_line]).mean()
  assert together['disagreement'] == {
    'score_std': pytest.approx(spread, rel=1e-3),
    'disputed': np.mean([len(set(x.argmax(axis=1))) > 1 for x in by_line]),
  }


def test_styles_are_compared(root, tmp_path):
  texts = ['gym', 'rent, call', 'oil', 'lamp, post']
  row = {'prompt': PROMPT, 'domain': 'chat'}
  row |= {'chosen': texts[:2], 'rejected': texts[2:]}
  source = runs.write_rows(tmp_path / 'styles.jsonl', [row])
  result = _evaluate(
    root / 'lora', tmp_path / 'styles.json', f'--input={source}'
  )
  line = {'prompt': PROMPT, 'response': texts}
  (scored,) = runs.score(root / 'lora', [line], tmp_path)
  plain, elaborate, *rejected = scored['score']
  assert result['domains']['chat']['matrix'] == [
    [float(score > other) for other in rejected] for score in (plain, elaborate)
  ]
  assert result['hard'] == float(plain > rejected[1])


def test_an_ensemble_on_a_task(root, tmp_path):
  few = '--gin.EVAL_EXAMPLES=40'
  alone = _evaluate(root / 'full', tmp_path / 'alone.json', few)
  ensemble = f"--gin.ENSEMBLE=['{root / 'full'}', '{root / 'point'}']"
  penalty = '--gin.ENSEMBLE_PENALTY=2'
  result = _evaluate(
    root / 'lora', tmp_path / 'several.json', few, ensemble, penalty
  )
  together = result['ensemble']
  assert len(together['checkpoints']) == 3 and together['penalty'] == 2
  first, second, third = together['members']
  assert second == {name: alone[name] for name in second}
  assert first == {name: result[name] for name in first} != second
  margins = [each['margin'] for each in (first, second, third)]
  assert together['mean']['margin'] == pytest.approx(np.mean(margins), abs=1e-6)
  disagreement = together['disagreement']
  assert disagreement['score_std'] > 0 and 0 <= disagreement['disputed'] <= 1
  assert sum(disagreement['bins']['examples']) == 40
  assert sum(result['bins']['reliability']['examples']) == 40


@pytest.mark.parametrize(
  ('checkpoint', 'more', 'wanted'),
  [
    ('sft', ('--input={rows}',), 'sft is a language model, not a reward'),
    ('sft', ("--gin.ENSEMBLE='{root}/lora'",), 'ENSEMBLE: only the eval'),
    ('lora', ("--gin.ENSEMBLE='{root}/sft'",), 'sft is a language model'),
    ('lora', ("--gin.ENSEMBLE='{root}/none'",), 'no such folder'),
    ('lora', ('--gin.ENSEMBLE_PENALTY=-1',), 'ENSEMBLE_PENALTY is -1'),
    (
      'lora',
      ('--input={rows}', "--gin.MIXTURE_OR_TASK_NAME='demo_rm'"),
      'two sets of questions',
    ),
    ('lora', ('--input={root}/no.jsonl',), 'Cannot read --input='),
    ('lora', ('--output={root}/no/eval.json',), 'folder of --output='),
  ],
)
def test_evaluations_that_cannot_be(
  root, tmp_path, capsys, checkpoint, more, wanted
):
  row = {'prompt': 'a', 'responses': ['b', 'c'], 'num_correct': 1}
  rows = runs.write_rows(tmp_path / 'in.jsonl', [{**row, 'subset': 'd'}])
  flags = [flag.format(root=root, rows=rows) for flag in more]
  command = ['evaluate', f'--checkpoint={root / checkpoint}', *flags]
  assert main.run(command) == 2
  message = capsys.readouterr().err
  assert wanted in message and 'Traceback' not in message


def test_an_evaluation_of_candidates_is_checked_first(root, tmp_path, capsys):
  row = {'prompt': 'a', 'responses': ['b', 'c'], 'subset': 'd'}
  good = runs.write_rows(tmp_path / 'good.jsonl', [{**row, 'num_correct': 1}])
  bad = runs.write_rows(tmp_path / 'bad.jsonl', [{**row, 'num_correct': 2}])
  command = ['evaluate', f'--checkpoint={root / "lora"}', '--check']
  ensemble = f"--gin.ENSEMBLE='{root / 'full'}'"
  assert main.run([*command, f'--input={good}', ensemble]) == 0
  shown = capsys.readouterr().out
  assert 'good.jsonl has 1 lines' in shown and 'ENSEMBLE' in shown
  ensemble = f"--gin.ENSEMBLE='{root / 'sft'}'"
  assert main.run([*command, f'--input={bad}', ensemble]) == 2
  message = ''.join(capsys.readouterr())
  assert '2 of 2 response(s)' in message and 'not a reward model' in message


def test_an_adapter_with_another_base_is_refused(root, tmp_path, capsys):
  command = [
    'score',
    f'--checkpoint={root / "lora"}',
    f'--base_checkpoint={root / "full"}',
    f'--input={runs.write_rows(tmp_path / "in.jsonl", ROWS)}',
    f'--output={tmp_path / "out.jsonl"}',
  ]
  assert main.run(command) == 2
  assert 'is a reward model' in capsys.readouterr().err
  runs.train('train_sft', 'none', tmp_path / 'other', 'demo_sft', steps=1)
  command[2] = f'--base_checkpoint={tmp_path / "other"}'
  assert main.run(command) == 2
  message = capsys.readouterr().err
  assert str(root / 'sft') in message and str(tmp_path / 'other') in message
  assert message.count('fingerprint') == 2
  assert not (tmp_path / 'out.jsonl').exists()


def test_an_adapter_whose_base_has_moved(root, tmp_path):
  shutil.copytree(root / 'sft', tmp_path / 'sft')
  runs.train(
    'train_reward',
    'attention',
    tmp_path / 'lora',
    'demo_rm',
    start=tmp_path / 'sft',
    steps=1,
  )
  before = runs.score(tmp_path / 'lora', ROWS, tmp_path)
  (tmp_path / 'sft').rename(tmp_path / 'moved')
  with pytest.raises(errors.CheckpointError, match='--base_checkpoint'):
    loading.load(str(tmp_path / 'lora'), partitioning.make_mesh())
  after = runs.score(
    tmp_path / 'lora',
    ROWS,
    tmp_path,
    f'--base_checkpoint={tmp_path / "moved"}',
  )
  assert before == after


def test_a_finished_run_is_not_trained_again(root, capsys):
  before = (root / 'lora' / 'metrics.jsonl').read_bytes()
  runs.train(
    'train_reward', 'attention', root / 'lora', 'demo_rm', start=root / 'sft'
  )
  assert (root / 'lora' / 'metrics.jsonl').read_bytes() == before


def test_a_model_dir_of_another_run_is_refused(root, capsys):
  args = runs.arguments(
    'train_reward',
    'attention',
    root / 'lora',
    'demo_rm',
    '--gin.LORA_RANK=4',
    start=root / 'sft',
  )
  assert main.run(args) == 2
  message = capsys.readouterr().err
  assert 'already holds step 6' in message and 'lora' in message


def test_scanned_and_unrolled_stages_follow_each_other(tmp_path):
  scan = '--gin.T5Config.scan_layers=True'
  sft, lora = tmp_path / 'sft', tmp_path / 'sft_lora'
  runs.train('train_sft', 'none', sft, 'demo_sft', scan, steps=1)
  runs.train(
    'train_sft', 'attention', lora, 'demo_sft', scan, start=sft, steps=1
  )
  runs.train(
    'train_reward', 'attention', tmp_path / 'rm', 'demo_rm', start=lora, steps=1
  )
  for name in (sft, lora, tmp_path / 'rm'):
    loaded = loading.load(str(name), partitioning.make_mesh())
    assert loaded.config.scan_layers
    paths = tree_paths.flatten(loaded.params)
    assert any('/layers/' in path for path in paths)
    rows = runs.score(name, ROWS[:2], tmp_path)
    key = 'score' if name.name == 'rm' else 'logprob'
    assert np.isfinite([row[key] for row in rows]).all()

"""A PaLI from SFT to policies, evaluated, scored and used as a user does it."""

import json

import numpy as np
import pytest
import report_pages
import runs
import tiny_pali

from perlhf_jax.checkpoints import loading
from perlhf_jax.cli import main
from perlhf_jax.core import tree_paths
from perlhf_jax.data import images
from perlhf_jax.training import partitioning
from perlhf_jax.training import step_files
from tasks import demo_vqa

FEW = '--gin.EVAL_EXAMPLES=8'
GOLD = '--gin_file=gin/demo_vqa/gold.gin'
PROJECTION = {'image_projection/kernel', 'image_projection/bias'}


def train(command, tuning, path, task, *more, **kwargs):
  runs.train(
    command,
    tuning,
    path,
    f'demo_vqa_{task}',
    FEW,
    *more,
    tiny=runs.TINY_PALI,
    **kwargs,
  )


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A chain of tiny runs.

  `sft` trains its ViT; on it are `sft_lora`, the reward models `rm` and
  `rm_full`, and the policies `lora` and `full`, tuned against both and one.
  """
  root = tmp_path_factory.mktemp('pali')
  sft = root / 'sft'
  train('train_sft', 'none', sft, 'sft', '--gin.TRAIN_VIT=True', steps=3)
  train(
    'train_sft',
    'attention',
    root / 'sft_lora',
    'sft',
    '--gin.LEARNING_RATE=1e-2',
    start=sft,
    steps=3,
  )
  for name, tuning in (('rm', 'attention'), ('rm_full', 'none')):
    train('train_reward', tuning, root / name, 'rm', start=sft, steps=3)
  for name, tuning, rewards in (
    ('lora', 'attention', f"['{root / 'rm'}', '{root / 'rm_full'}']"),
    ('full', 'none', f"'{root / 'rm'}'"),
  ):
    train(
      'train_policy',
      tuning,
      root / name,
      'prompts',
      '--gin_file=gin/rl/reinforce.gin',
      GOLD,
      f'--gin.REWARD_CHECKPOINT={rewards}',
      '--gin.LEARNING_RATE=1e-2',
      start=sft,
      steps=3,
    )
  return root


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """Lines with pictures of their own, and one without."""
  folder = tmp_path_factory.mktemp('pictures')
  for number in range(3):
    (folder / f'{number}.png').write_bytes(tiny_pali.png(number, 32, 32))
  (folder / '3.jpg').write_bytes(tiny_pali.jpeg(3, 40, 20))
  names = ['0.png', ['1.png'], '2.png', '3.jpg', None]
  return [
    {
      'prompt': 'how many shapes?',
      'response': str(number),
      'image': name
      if name is None
      else str(folder / (name if isinstance(name, str) else name[0])),
    }
    for number, name in enumerate(names)
  ]


def stored(path, role=None):
  step = step_files.find_step(str(path))
  return tree_paths.flatten(step_files.read_trainable(step, role))


def test_sft_trains_every_weight(root):
  metadata = step_files.read_metadata(step_files.find_step(str(root / 'sft')))
  assert metadata['base'] is None
  assert metadata['model']['vit']['patch_size'] == 8
  assert metadata['task_feature_lengths']['images'] == 1
  names = {path.split('/')[1] for path in stored(root / 'sft')}
  assert {'vit', 'image_projection', 'encoder', 'decoder'} < names


@pytest.mark.parametrize('name', ['sft_lora', 'rm'])
def test_lora_stores_adapters_and_the_projection(root, name):
  tree = stored(root / name)
  params = {p for p in tree if p.startswith('params/')}
  assert params == {f'params/{path}' for path in PROJECTION}
  assert not any('vit' in path for path in tree)
  assert any(path.startswith('lora/encoder/') for path in tree)


@pytest.mark.parametrize(
  ('name', 'role'), [('rm_full', None), ('full', 'policy'), ('full', 'value')]
)
def test_full_tuning_leaves_the_vit_frozen(root, name, role):
  tree = stored(root / name, role)
  assert not any('/vit/' in path for path in tree)
  assert any(path.startswith('params/encoder/') for path in tree)
  before = stored(root / 'sft')
  loaded = loading.load(str(root / name), partitioning.make_mesh())
  assert loaded.metadata.base['path'].startswith(str(root / 'sft'))
  after = tree_paths.flatten(loaded.params)
  assert after.keys() == {p.removeprefix('params/') for p in before}
  for path, leaf in after.items():
    same = (before[f'params/{path}'] == leaf).all()
    assert same == path.startswith('vit/'), path


def test_projections_of_the_roles_move_apart(root):
  before = stored(root / 'sft')
  kernels = [before['params/image_projection/kernel']]
  for name, role in (('rm', None), ('lora', 'policy'), ('lora', 'value')):
    kernels.append(stored(root / name, role)['params/image_projection/kernel'])
  for i, one in enumerate(kernels):
    for other in kernels[:i]:
      assert (one != other).any()


def test_metrics(root):
  train_records, evaluations = (
    [r for r in runs.metrics(root / 'lora') if r['split'] == split]
    for split in ('train', 'eval')
  )
  for record in train_records:
    assert record['ratio_deviation'] < 1e-5
    assert np.isfinite(record['loss'])
  assert 0 <= evaluations[-1]['judge_score'] <= 100
  sample = json.loads(
    (root / 'lora' / 'samples.jsonl').read_text().splitlines()[0]
  )
  assert len(sample['references']) == 1


def test_samples_name_what_the_model_saw(root):
  sample = json.loads(
    (root / 'lora' / 'samples.jsonl').read_text().splitlines()[0]
  )
  row = next(iter(demo_vqa.make_prompts('validation')))
  size = loading.peek(str(root / 'lora')).config.image_size
  (name,) = sample['images']
  np.testing.assert_array_equal(
    images.decode((root / 'lora' / name).read_bytes(), size),
    images.decode(row['images'][0], size),
  )


@pytest.mark.parametrize('name', ['lora', 'full'])
def test_evaluation_of_policies(root, name):
  command = ['evaluate', '--gin_file=gin/runs/evaluate.gin', GOLD]
  command += [f'--checkpoint={root / name}', '--gin.EVAL_EXAMPLES=12']
  command += [f"--gin.BASELINE_CHECKPOINT='{root / 'sft'}'"]
  assert main.run(command) == 0
  result = json.loads((root / name / 'eval.json').read_text())
  assert result['judged_by'] == 'judge_score'
  assert result['kl_k1'] > 0
  assert result['baseline']['response_length'] > 0
  # The reference is the SFT model, whose own KL would be zero.
  answers = result['samples'][0]
  assert answers['references']
  assert (root / name / answers['images'][0]).exists()


def test_report(root):
  assert main.run(['report', f'--model_dir={root / "lora"}']) == 0
  page = report_pages.parse(root / 'lora' / 'report.html')
  assert page.all('img')
  assert 'score (reward) against KL' in page.text
  assert 'policy, reinforce, lora, demo_vqa_prompts' in page.text
  assert 'jaxlib' in page.text


def test_evaluation_of_reward_models(root):
  for name in ('rm', 'rm_full'):
    command = ['evaluate', f'--checkpoint={root / name}']
    assert main.run([*command, '--gin.EVAL_EXAMPLES=20']) == 0
    result = json.loads((root / name / 'eval.json').read_text())
    assert 0 <= result['roc_auc'] <= 1


@pytest.mark.parametrize('name', ['rm', 'rm_full', 'sft', 'sft_lora', 'lora'])
def test_scores_do_not_depend_on_the_batch(root, rows, tmp_path, name):
  field = 'score' if name.startswith('rm') else 'logprob'
  together = runs.score(root / name, rows, tmp_path, '--batch_size=4')
  alone = runs.score(root / name, rows[::-1], tmp_path, '--batch_size=1')
  np.testing.assert_allclose(
    [row[field] for row in together],
    [row[field] for row in alone[::-1]],
    atol=1e-5,
  )
  assert [row['image'] for row in together] == [row['image'] for row in rows]
  pictures = {row['image']: row[field] for row in together[:4]}
  other = [{**row, 'response': '0'} for row in rows]
  values = [r[field] for r in runs.score(root / name, other, tmp_path)]
  # The same question and answer, about other pictures.
  assert len({round(value, 7) for value in values}) == len(values)
  assert len(pictures) == 4


def test_generation_reads_the_picture(root, rows, tmp_path):
  more = ('--temperature=0', '--batch_size=4', '--max_length=6')
  answers = runs.generate(root / 'lora', rows, tmp_path, *more)
  alone = runs.generate(root / 'lora', rows[1:2], tmp_path, *more)
  assert answers[1] == alone[0]
  beams = runs.generate(
    root / 'lora', rows, tmp_path, '--num_beams=2', '--max_length=6'
  )
  assert all(isinstance(row['response'], str) for row in beams)


def test_adapters_and_projection_are_merged(root):
  mesh = partitioning.make_mesh()
  merged = loading.load_merged(str(root / 'sft_lora'), mesh)
  sft = loading.load_merged(str(root / 'sft'), mesh)
  tuned = stored(root / 'sft_lora')
  after, before = map(tree_paths.flatten, (merged.params, sft.params))
  for path in PROJECTION:
    np.testing.assert_array_equal(after[path], tuned[f'params/{path}'])
  adapted = {
    path.removeprefix('lora/').removesuffix('lora/lora_a') + 'kernel'
    for path in tuned
    if path.endswith('lora_a')
  }
  changed = {p for p in before if (before[p] != after[p]).any()}
  assert changed == adapted | PROJECTION
  assert merged.fingerprint != sft.fingerprint


def test_another_resolution(root, rows, tmp_path):
  path = tmp_path / 'rm_48'
  train(
    'train_reward',
    'attention',
    path,
    'rm',
    '--gin.IMAGE_SIZE=48',
    start=root / 'sft',
    steps=1,
  )
  scores = runs.score(path, rows, tmp_path)
  assert len({row['score'] for row in scores}) == len(rows)
  loaded = loading.load(str(path), partitioning.make_mesh())
  assert loaded.config.image_size == 48
  assert loaded.params['vit']['pos_embedding'].shape[1] == 36

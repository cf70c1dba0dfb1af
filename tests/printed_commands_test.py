"""Every command that we print is typed into a shell, as it stands."""

import re

import jax
import printed_commands
import printed_world
import pytest

from perlhf_jax.cli import commands
from perlhf_jax.training import topologies

ROOT = printed_world.ROOT
# In the order in which a reader goes through them, in one shell.
READ = [
  'README.md',
  'docs/index.md',
  'docs/quick_start.md',
  'docs/own_data.md',
  'docs/configuration.md',
  'docs/lora.md',
  'docs/reward_models.md',
  'docs/rl.md',
  'docs/dpo.md',
  'docs/extending.md',
  'docs/images.md',
  'docs/checkpoints.md',
  'docs/memory.md',
  'docs/architecture.md',
  'docs/api.md',
  'docs/changelog.md',
  'docs/contributing.md',
  'CONTRIBUTING.md',
]
# Pages for those who use a cluster.
CLUSTER = [
  'docs/pods.md',
  'docs/caching.md',
  'docs/results.md',
  'docs/sweeps.md',
  'docs/errors.md',
]
PAGES = [*READ, *CLUSTER]
GIN_FILES = sorted((ROOT / 'gin').glob('**/*.gin'))
PAPER = [path for path in GIN_FILES if 'paper' in path.parts]
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
# What heads print, in the order in which one needs them.
RUNS = ['train_sft', 'train_reward', 'train_dpo', 'train_policy', 'evaluate']
PAPER_RUNS = ['sft', 'reward_lora', 'reward_full', 'policy']

# What a reader has before: data, and files of prompts and responses.
DATA = printed_commands.Shell('data', 'export PERLHF_DATA_DIR=/path/to/data')
LINES = printed_commands.Shell(
  'lines',
  """
echo '{"prompt": "todo: Vet tea", "response": "vet"}' >pairs.jsonl
cp pairs.jsonl prompts.jsonl
""",
)
# And models that other commands of the same kind have trained.
MODELS = printed_commands.Shell('models', 'cp -r runs/train_reward runs/rm')
PAPER_MODELS = printed_commands.Shell(
  'models of other data sets',
  'for name in harmless shp android_control; do'
  ' cp -r runs/tldr_sft runs/"$name"_sft; done',
)
PALI = printed_commands.Shell(
  'a PaLI',
  """
perlhf train_sft --gin_file=gin/models/pali3_5b.gin \\
  --gin_file=gin/vocabularies/byte.gin --gin_file=gin/lora/none.gin \\
  --gin.MIXTURE_OR_TASK_NAME="'vqav2_sft'" --gin.TRAIN_STEPS=2 \\
  --gin.TRAIN_VIT=True \\
  --gin.MODEL_DIR="'/path/to/pali'"
ln -sfn /path/to/pali /path/to/model
""",
)


@pytest.fixture(scope='module', autouse=True)
def _own_imports():
  """Gin takes no second class of one name, so that all worlds share theirs."""
  with printed_world.own_imports():
    yield


@pytest.fixture(autouse=True)
def _plan_on_this_cpu(monkeypatch):
  """Compiling for TPUs has tests of its own, and takes its time."""
  monkeypatch.setattr(topologies, 'devices', lambda _: jax.devices()[:1])


@pytest.fixture(name='world', params=['checkout', 'elsewhere'])
def _world(request, tmp_path):
  return printed_world.World(tmp_path, request.param == 'checkout')


@pytest.fixture(name='checkout')
def _checkout(tmp_path):
  return printed_world.World(tmp_path, is_checkout=True)


def page(name):
  return printed_commands.of_markdown(ROOT / name, name)


def heads(paths):
  return [
    command
    for path in paths
    for command in printed_commands.of_head(
      path, path.relative_to(ROOT).as_posix()
    )
  ]


def help_pages(names):
  return [
    piece for name in names for piece in printed_commands.of_help_page(name)
  ]


def paper_heads(end):
  return heads(path for path in PAPER if path.stem.endswith(end))


def works(world, pieces, **kwargs):
  """Every command of the pieces was called, and ended well."""
  pieces = list(pieces)
  world.type_in(pieces, **kwargs)
  assert not world.failures, '\n\n'.join(map(str, world.failures))
  typed = sum(
    len(re.findall(r'^ *(?:\w+=\S+ )*(?:\S+/)?perlhf ', line))
    for piece in pieces
    if isinstance(piece, printed_commands.Shell)
    for line in piece.typed
  )
  assert len(world.calls) == typed


def test_pages(world):
  pieces = [piece for name in READ for piece in page(name)]
  if not world.is_checkout:  # Scripts are run at the top of a checkout.
    pieces = [
      piece
      for piece in pieces
      if not re.search(r'launch/\w+\.sh|\.venv/', piece.text)
    ]
  works(world, pieces)
  # The demo begins with how long it takes.
  if world.is_checkout:
    demo = world.printed.partition('$ perlhf')[0]
    assert re.search(r'about \d+ minutes on two CPU cores', demo)


def works_here_and_elsewhere(checkout, pieces):
  """Runs commands at the top of a checkout, and checks them elsewhere."""
  works(checkout, pieces)
  folder = checkout.folder.parent / 'elsewhere'
  other = printed_world.World(folder, is_checkout=False, trained_by=checkout)
  works(other, pieces, only_check=True)


def test_help_pages(checkout):
  pieces = [DATA, LINES, *help_pages(commands.COMMANDS)]
  works_here_and_elsewhere(checkout, pieces)


def test_heads_of_gin_files(checkout):
  runs = [ROOT / 'gin' / 'runs' / f'{name}.gin' for name in RUNS]
  others = [path for path in GIN_FILES if path not in [*runs, *PAPER]]
  works_here_and_elsewhere(checkout, [DATA, *heads([*runs, *others])])


def test_heads_of_the_papers_gin_files(checkout):
  groups = [paper_heads(end) for end in PAPER_RUNS]
  sft = [command for command in groups[0] if 'vqav2' not in command.place]
  vqa = [command for command in groups[0] if 'vqav2' in command.place]
  pieces = [DATA, *sft, PAPER_MODELS, PALI, *vqa]
  for group in groups[1:]:
    pieces += group
  works_here_and_elsewhere(checkout, pieces)


def test_heads_of_scripts(checkout):
  works(checkout, heads(SCRIPTS))


def test_pages_of_the_launchers(checkout):
  models = help_pages(['train_sft', 'train_reward'])
  pieces = [piece for name in CLUSTER for piece in page(name)]
  works(checkout, [*models, MODELS, *pieces])


def test_every_page_is_read():
  found = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *ROOT.glob('docs/*.md'),
  ]
  assert {path.relative_to(ROOT).as_posix() for path in found} == set(PAGES)
  pieces = [piece for name in PAGES for piece in page(name)]
  shells = [each for each in pieces if isinstance(each, printed_commands.Shell)]
  assert sum(len(shell.typed) for shell in shells) > 50


@pytest.mark.parametrize('name', PAGES)
def test_no_command_of_a_page_is_overlooked(name):
  found = sum(
    len(piece.typed)
    for piece in page(name)
    if isinstance(piece, printed_commands.Shell)
  )
  text = (ROOT / name).read_text('utf-8')
  in_blocks = re.findall(
    r'(?<!\\\n)^\s*(?:\w+=\S+ )*(?:\./|\.venv/bin/)?'
    r'(?:perlhf [a-z]|launch/\w+\.sh)',
    text,
    re.MULTILINE,
  )
  assert found >= len(in_blocks)


@pytest.mark.parametrize(
  'path',
  [*GIN_FILES, *SCRIPTS],
  ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_command_of_a_head_is_overlooked(path):
  found = [
    line.strip()
    for command in heads([path])
    for line in command.text.splitlines()
  ]
  starts = [
    line for line in found if re.search(r'(perlhf|launch/\S+)( |$)', line)
  ]
  assert len(starts) == printed_commands.count_in_head(path)

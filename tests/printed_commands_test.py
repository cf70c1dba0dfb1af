"""Every command that we print is typed into a shell, as it stands."""

import jax
import printed_commands
import printed_world
import pytest

from perlhf_jax import main
from perlhf_jax.training import topologies

ROOT = printed_world.ROOT
GIN_FILES = sorted((ROOT / 'gin').glob('**/*.gin'))
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
PLACES = ['checkout', 'elsewhere']


@pytest.fixture(scope='module', autouse=True)
def _compile_once(tmp_path_factory):
  """Many commands compile the same programs."""
  settings = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('cache')),
    'jax_persistent_cache_min_compile_time_secs': 0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(autouse=True)
def _plan_on_this_cpu(monkeypatch):
  """libtpu compiles in other tests, and takes its time."""
  monkeypatch.setattr(topologies, 'devices', lambda _: jax.devices()[:1])


@pytest.fixture(name='world', params=PLACES)
def _world(request, tmp_path):
  return printed_world.World(tmp_path, request.param == 'checkout')


@pytest.fixture(name='checkout')
def _checkout(tmp_path):
  return printed_world.World(tmp_path, is_checkout=True)


def head_commands(paths):
  return [
    command
    for path in paths
    for command in printed_commands.of_head(
      path, path.relative_to(ROOT).as_posix()
    )
  ]


def works(world):
  assert not world.failures, '\n\n'.join(map(str, world.failures))


def test_readme(world):
  pieces = printed_commands.of_markdown(ROOT / 'README.md', 'README.md')
  if not (world.folder / 'launch').exists():
    pieces = [
      piece
      for piece in pieces
      if 'launch/' not in piece.text and '.venv/' not in piece.text
    ]
  world.type_in(pieces)
  works(world)


def test_help_pages(world):
  world.type_in(
    piece
    for command in main.COMMANDS
    for piece in printed_commands.of_help_page(command)
  )
  works(world)


def test_heads_of_gin_files(checkout):
  paths = [path for path in GIN_FILES if 'paper' not in path.parts]
  checkout.type_in(head_commands(paths))
  works(checkout)


def test_heads_of_the_papers_gin_files(checkout):
  order = ['sft', 'reward_lora', 'reward_full', 'policy']
  paths = [
    path
    for end in order
    for path in GIN_FILES
    if 'paper' in path.parts and path.stem.endswith(end)
  ]
  checkout.type_in(head_commands(paths))
  works(checkout)


def test_heads_of_scripts(checkout):
  checkout.type_in(head_commands(SCRIPTS))
  works(checkout)


def test_launch_readme(checkout):
  checkout.type_in(
    printed_commands.of_markdown(
      ROOT / 'launch' / 'README.md', 'launch/README.md'
    )
  )
  works(checkout)

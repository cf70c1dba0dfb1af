import launch_world
import pytest


@pytest.fixture(name='world')
def _world(tmp_path):
  return launch_world.World(tmp_path)

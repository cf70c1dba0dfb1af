"""A small demo world, for the tests that train in it."""

import pytest

from tasks import demo
from tasks import demo_vqa


@pytest.fixture(scope='module', autouse=True)
def small_world():
  """Makes few rows: runs read at most 48, and a task makes all it has.

  The rows that are read are the same ones.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(demo.SPLIT_SIZES, 'train', 100)
    for split, size in (('train', 100), ('validation', 48), ('test', 48)):
      patch.setitem(demo_vqa.SPLIT_SIZES, split, size)
    yield

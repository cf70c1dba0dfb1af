"""Set-up of the tests of stages: a small demo world."""

import pytest

from tasks import demo


@pytest.fixture(scope='module', autouse=True)
def small_world():
  """Makes few training rows: runs read 48, and the task makes all it has.

  The rows that are read are the same ones.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(demo.SPLIT_SIZES, 'train', 100)
    yield

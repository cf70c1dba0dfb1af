"""Files that take more than a minute of a processor.

They begin first, so that the processes of a run of the suite end together.
"""

import pathlib

_TESTS = pathlib.Path(__file__).parents[1]
LONGEST_FIRST = (
  'stages/everywhere_test.py',
  'printed_commands_test.py',
  'stages/resume_test.py',
  'checkpoints/self_contained_test.py',
  'stages/pipeline_test.py',
  'stages/pali_pipeline_test.py',
  'benchmark/benchmark_test.py',
  'stages/siglip_start_test.py',
  'plan/plan_libtpu_test.py',
  'plan/plan_pali_test.py',
  'stages/policy_bad_input_test.py',
  'stages/exports_everywhere_test.py',
  'stages/train_policy_test.py',
  'stages/by_length_test.py',
  'stages/ownership_test.py',
  'sweep/tiny_sweep_test.py',
)


def rank(item):
  """Sorts a test of the longest file first, and all others last, as found."""
  for number, name in enumerate(LONGEST_FIRST):
    if item.path == _TESTS / name:
      return number
  return len(LONGEST_FIRST)

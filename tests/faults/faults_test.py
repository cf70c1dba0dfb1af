"""A short campaign of faults, and whether one finds what is wrong.

`campaign.py` injects hundreds of faults into all commands and both worlds.
"""

import json

import campaign
import cases
import comparison
import pytest
import starting
import worlds

# What takes the least time.
_FAULTS = [
  campaign.Fault('kill', 8, 't5', 'train_sft'),
  campaign.Fault('SIGTERM', 0, 't5', 'generate'),
  campaign.Fault('size limit', 0, 't5', 'convert'),
  campaign.Fault('file of a step', 6, 't5', 'generate'),
  campaign.Fault('file of a step', 15, 't5', 'inspect'),
  campaign.Fault('whole step', 1, 't5', 'convert'),
  campaign.Fault('records', 0, 't5', 'train_sft'),
  campaign.Fault('rows', 3, 't5', 'train_sft'),
  campaign.Fault('lines', 1, 't5', 'generate'),
  campaign.Fault('two at once', 3, 't5', 'generate'),
  campaign.Fault('clock', 6, 't5', 'inspect'),
]


@pytest.fixture(scope='module')
def place(preloaded):
  with campaign.Campaign(0, preloaded, timed=False) as place:
    yield place


@pytest.mark.parametrize(
  'fault', _FAULTS, ids=lambda fault: f'{fault.kind} {fault.stage}'
)
def test_a_fault_is_recovered_from_or_told(place, fault):
  row = place.run(fault)
  assert row['verdict'] in cases.GOOD, json.dumps(row, indent=1)


def test_a_fault_that_goes_unseen_is_found(place):
  """Of a world in which something else is right."""
  world = place.world('t5')
  wanted = world.wanted('generate')
  assert wanted['output']
  try:
    world.change('generate', {'output': wanted['output'] + 'x'})
    row = place.run(campaign.Fault('nothing', 6, 't5', 'generate'))
  finally:
    world.change('generate', wanted)
  assert row['verdict'] == cases.SILENT


class _Ended:
  """A command that has ended."""

  def __init__(self, code, err):
    self._outcome = starting.Outcome(code, '', err)

  def wait(self):
    return self._outcome


_MESSAGE = 'perlhf: error: runs/rm is damaged\n'
_TRACE = 'Traceback (most recent call last):\n  File "a.py"\nKeyError: 1\n'


@pytest.mark.parametrize(
  ('code', 'err', 'verdict'),
  [
    (0, '12:00:00 Finished\n', None),
    (2, _MESSAGE, None),
    (None, '', cases.HANG),
    (1, _TRACE, cases.TRACEBACK),
    (0, _TRACE, cases.TRACEBACK),
    (-11, '', cases.CRASH),
    (75, _MESSAGE, cases.STUCK),
    (2, '', cases.UNCLEAR),
    (2, 2 * _MESSAGE, cases.UNCLEAR),
    (2, 'perlhf: error: something is wrong\n', cases.UNCLEAR),
  ],
)
def test_ends(code, err, verdict, tmp_path):
  case = cases.Case(None, 'score', tmp_path / 'case', seed=0, number=0)
  found = None
  try:
    case.end(_Ended(code, err), codes=(0, 2), names=['runs/rm'])
  except cases.Failure as failure:
    found = failure.verdict
  assert found == verdict


_RECORDS = [{'step': i, 'loss': 1.0 / i} for i in range(1, 5)]
_TOLD = '12:00:00 WARNING: runs/rm/metrics.jsonl: line 2 cannot be read'


@pytest.mark.parametrize(
  ('records', 'said', 'is_same'),
  [
    (_RECORDS, '', True),
    ([_RECORDS[0], *_RECORDS[2:]], _TOLD, True),
    ([_RECORDS[0], *_RECORDS[2:]], '', False),
    ([*_RECORDS, _RECORDS[-1]], _TOLD, False),
    (_RECORDS[::-1], _TOLD, False),
    ([*_RECORDS[:-1], {'step': 4, 'loss': 0.2}], _TOLD, False),
  ],
)
def test_records_may_be_missing_where_that_is_said(records, said, is_same):
  made, wanted = {'metrics.jsonl': records}, {'metrics.jsonl': _RECORDS}
  found = comparison.difference(made, wanted, said)
  assert found == (None if is_same else 'metrics.jsonl')


def test_a_single_bit_of_a_leaf_is_a_difference():
  wanted = {'leaf w': b'\0\1', 'leaf b': b'\2'}
  assert comparison.difference(dict(wanted), wanted) is None
  assert comparison.difference({**wanted, 'leaf w': b'\0\0'}, wanted) == (
    'leaf w'
  )
  assert comparison.difference({'leaf w': b'\0\1'}, wanted) == 'leaf b'


def test_a_campaign_has_all_kinds_stages_and_worlds():
  faults = campaign.draw(200)
  assert 200 <= len(faults) <= 220
  assert len({(f.kind, f.number) for f in faults}) == len(faults)
  assert {f.kind for f in faults} == {*campaign.KINDS}
  pairs = {(f.name, f.stage) for f in faults if f.kind == 'kill'}
  assert pairs == {(n, s) for n in worlds.NAMES for s in worlds.STAGES}
  assert {f.kind for f in campaign.draw(20)} == {*campaign.KINDS}

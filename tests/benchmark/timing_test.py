from perlhf_jax.benchmark import machine
from perlhf_jax.benchmark import timing

_MACHINE = machine.Machine('float32', 1.0, 1.0)


class _FakePrograms:
  """Writes down who was called."""

  def __init__(self, name, log):
    self._name, self._log = name, log

  def calls(self):
    return {call: self._call(call) for call in ('a', 'b')}

  def figures(self, measured):
    return {c: [t.result for t in m.timings] for c, m in measured.items()}

  def _call(self, call):
    def function(repeat):
      self._log.append((self._name, call, repeat))
      return repeat

    return function


def test_tunings_are_timed_in_turn_after_a_call_that_does_not_count():
  log = []
  programs = {name: _FakePrograms(name, log) for name in 'xy'}
  figures, seconds = timing.measure(programs, 2, _MACHINE)
  compiled = [(name, call, 0) for name in 'xy' for call in 'ab']
  timed = [
    (name, call, repeat) for repeat in (1, 2) for call in 'ab' for name in 'xy'
  ]
  assert log == compiled + timed
  assert figures == {name: {'a': [1, 2], 'b': [1, 2]} for name in 'xy'}
  assert all(len(x) == 2 for each in seconds.values() for x in each.values())

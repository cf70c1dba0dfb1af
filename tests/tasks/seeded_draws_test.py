import collections

from tasks import seeded_draws

# Other numbers would change the wrong answers of the data sets.
DRAWN = [2, 7, 5, 0, 4]


def test_draws_depend_on_the_key_alone():
  assert [seeded_draws.draw_index(f'0/{i}', 10) for i in range(5)] == DRAWN
  assert seeded_draws.draw('0/1', 'abcdefghij') == 'abcdefghij'[DRAWN[1]]


def test_draws_are_even():
  counts = collections.Counter(
    seeded_draws.draw(f'even/{i}', 'abc') for i in range(6000)
  )
  assert set(counts) == set('abc')
  assert all(abs(count - 2000) < 150 for count in counts.values())

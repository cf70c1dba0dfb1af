import numpy as np

from perlhf_jax.benchmark import batches as batches_lib


def test_random_tokens():
  rng = np.random.default_rng(0)
  drawn = batches_lib.random_tokens(rng, 400, 16, 7)
  assert {len(tokens) for tokens in drawn} == set(range(4, 17))
  for tokens in drawn:
    assert tokens.dtype == np.int32 and tokens[-1] == 1
  assert {t for tokens in drawn for t in tokens[:-1]} == {2, 3, 4, 5, 6}
  assert all(
    tokens.tolist() == [1] for tokens in batches_lib.random_tokens(rng, 3, 1, 7)
  )

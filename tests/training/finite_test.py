import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perlhf_jax.core import errors
from perlhf_jax.training import finite
from perlhf_jax.training import train_state


def _state():
  trainable = {'lora': {'a': jnp.ones((3, 4)), 'b': jnp.zeros(2)}}
  return train_state.create(trainable, optax.adam(0.1))


def test_a_state_of_numbers_passes():
  assert finite.not_finite(_state()) == {}
  assert finite.not_finite({'count': jnp.zeros((), jnp.int32)}) == {}
  finite.check({}, 'here')


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_each_array_is_named_with_how_many(bad):
  state = _state()
  a = jnp.ones((3, 4)).at[1, 2:].set(bad)
  state = state.replace(trainable={'lora': {**state.trainable['lora'], 'a': a}})
  moments = state.opt_state[0]
  spoilt = moments._replace(mu={'lora': {**moments.mu['lora'], 'b': a[1]}})
  state = state.replace(opt_state=(spoilt, *state.opt_state[1:]))
  assert finite.not_finite(state) == {
    'trainable/lora/a': 2,
    'opt_state/0/mu/lora/b': 2,
  }


def test_the_message_names_the_parameters():
  with pytest.raises(errors.CheckpointError) as error:
    finite.check({'a/b': 1, 'c': 2000, 'd': 3, 'e': 4}, 'runs/sft')
  message = str(error.value)
  assert message.startswith('runs/sft holds numbers that are NaN or infinite')
  assert 'a/b (1), c (2,000), d (3) and 1 more' in message

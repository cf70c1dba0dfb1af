"""How the models of a benchmark are tuned."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import optax

from perlhf_jax.models import lora as lora_lib
from perlhf_jax.training import optimizers

# Of the schedule; no benchmark is as long.
_TRAIN_STEPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Setting:
  """A tuning, and where it happens.

  Attributes:
    lora: adapters; None for full tuning.
    optimizer: of every model that is trained.
    mesh: the mesh.
    seed: of adapters, heads and samples.
  """

  lora: lora_lib.LoraConfig | None
  optimizer: optimizers.Optimizer
  mesh: jax.sharding.Mesh
  seed: int

  def make_optimizer(self) -> optax.GradientTransformation:
    """Returns the gradient transformation."""
    return optimizers.make_optimizer(self.optimizer, _TRAIN_STEPS)

  def make_schedule(self) -> Callable[[Any], Any]:
    """Returns the learning rate as a function of the step."""
    return optimizers.make_schedule(self.optimizer, _TRAIN_STEPS)

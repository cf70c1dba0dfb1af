"""How to tune the models of a benchmark."""

import dataclasses

from perlhf_jax.models import lora as lora_lib
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning

# The length of the schedule, longer than any benchmark.
TRAIN_STEPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Setting:
  """A tuning, and its mesh.

  Attributes:
    lora: adapters; None for full tuning.
    optimizer: optimizer of every trained model.
    mesh: the mesh.
    seed: seed of adapters, heads and samples.
  """

  lora: lora_lib.LoraConfig | None
  optimizer: optimizers.Optimizer
  mesh: partitioning.LogicalMesh
  seed: int

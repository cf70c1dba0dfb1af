"""How the models of a benchmark are tuned."""

import dataclasses

from perlhf_jax.models import lora as lora_lib
from perlhf_jax.training import optimizers
from perlhf_jax.training import partitioning

# Of the schedule; no benchmark is as long.
TRAIN_STEPS = 1_000_000


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
  mesh: partitioning.LogicalMesh
  seed: int

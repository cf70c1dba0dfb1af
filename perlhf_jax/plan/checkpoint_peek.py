"""What a checkpoint is, read without its weights."""

import dataclasses
from typing import Any

from etils import epath

from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf
from perlhf_jax.interop import siglip
from perlhf_jax.models import pali_config
from perlhf_jax.models import t5_config
from perlhf_jax.stages import run_metadata
from perlhf_jax.training import checkpoints


@dataclasses.dataclass(frozen=True)
class Peek:
  """A checkpoint of ours, or a Hugging Face T5 directory.

  Attributes:
    path: as it was given.
    config: the architecture.
    vocabulary: the tokenizer; None for a remote Hugging Face directory, whose
      files are not copied here for a look.
    step_path: folder of the step; None for a Hugging Face directory.
    metadata: of the step; None for a Hugging Face directory.
  """

  path: str
  config: t5_config.T5Config
  vocabulary: Any
  step_path: str | None = None
  metadata: run_metadata.RunMetadata | None = None

  @property
  def is_reward_model(self) -> bool:
    """Whether it scores text and writes none."""
    return (
      self.metadata is not None and self.metadata.kind == run_metadata.REWARD
    )

  def __str__(self):
    if self.metadata is None:
      return 'a Hugging Face T5'
    step = epath.Path(self.step_path).name
    kinds = {
      run_metadata.SFT: 'an SFT model',
      run_metadata.REWARD: f'a {self.metadata.objective} reward model',
      run_metadata.POLICY: f'a policy ({self.metadata.objective})',
    }
    tuning = 'LoRA' if self.metadata.tuning == 'lora' else 'full tuning'
    return f'{kinds[self.metadata.kind]}, {tuning}, step {step}'


def peek(path: str) -> Peek:
  """Reads what a checkpoint says of itself.

  Args:
    path: MODEL_DIR, one of its steps, or a Hugging Face directory.

  Raises:
    CheckpointError: nothing usable there.
  """
  step = checkpoints.find_step(path)
  if step is not None:
    metadata = run_metadata.from_json(
      checkpoints.read_metadata(step), str(step)
    )
    return Peek(path, metadata.model, metadata.vocabulary, str(step), metadata)
  if not hf.is_hf_directory(path):
    raise errors.CheckpointError(
      f'No checkpoint at {path}: give a MODEL_DIR, one of its '
      'checkpoints/<step> folders, or a Hugging Face T5 directory.'
    )
  vocabulary = None
  if '://' not in path:
    vocabulary = vocabularies.load_from_hf_directory(path)
  return Peek(path, hf.load_config(path), vocabulary)


def with_vit(peeked: Peek, path: str) -> t5_config.T5Config:
  """Returns the architecture with the ViT of a SigLIP directory in front.

  Raises:
    CheckpointError: there is a ViT already, or no SigLIP directory.
  """
  return pali_config.in_front_of(
    peeked.config, siglip.load_config(path), peeked.path
  )

"""A loaded model for Python programs: strings in, numbers or strings out.

Models that read images take images too; see `prompt_images`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.core import errors
from perlhf_jax.data import kinds
from perlhf_jax.stages import generate as generate_lib
from perlhf_jax.stages import prompt_images
from perlhf_jax.stages import score as score_lib
from perlhf_jax.training import partitioning

# For each prompt an image, a list of images, or None; see `prompt_images.read`.
Images = Sequence[Any] | np.ndarray | None


def load(
  path: str,
  *,
  base_checkpoint: str | None = None,
  batch_size: int = 32,
  mesh_shape: Sequence[int] = (-1, 1, 1),
) -> 'TextModel':
  """Loads a checkpoint of any format, to score or to generate text.

  Args:
    path: a MODEL_DIR, one of its steps, or a directory of any format that
      `perlhf inspect` knows.
    base_checkpoint: path of an adapter's base, if it is not where the adapter
      records it.
    batch_size: texts per batch; it does not change the results.
    mesh_shape: devices as (data, fsdp, tensor); one of the sizes may be -1.

  Raises:
    CheckpointError: the checkpoint cannot be used.
    ConfigError: the mesh does not divide a batch.
  """
  mesh = partitioning.make_mesh(tuple(mesh_shape))
  partitioning.check_batch_size(batch_size, mesh)
  loaded = loading.load(path, mesh, base_checkpoint)
  return TextModel(loaded, batch_size, mesh)


class TextModel:
  """A reward model or a language model.

  Programs are compiled when they are first needed, one per length bucket. A
  model that this library trained cuts prompts to the length of its training, at
  the same end; other models do not cut prompts.

  Attributes:
    about: the loaded model, without its weights.
  """

  def __init__(
    self,
    loaded: loaded_model.LoadedModel,
    batch_size: int,
    mesh: partitioning.LogicalMesh,
  ):
    """Prepares a model; see `load`."""
    self.about = loaded.without_weights()
    self._loaded, self._batch_size, self._mesh = loaded, batch_size, mesh
    self._scorer: score_lib.BatchScorer | None = None
    self._decoders: dict[Any, generate_lib.Decoder] = {}

  def score(
    self,
    prompts: Sequence[str],
    responses: Sequence[str],
    images: Images = None,
  ) -> list[float]:
    """Scores one response to each prompt with a reward model.

    Args:
      prompts: the prompts.
      responses: one per prompt; they are cut to the length of the training.
      images: one entry per prompt, for models that read images; see
        `prompt_images.read`.

    Raises:
      CheckpointError: this is a language model.
      DataError: images cannot be read, or the model reads none.
    """
    if not self.about.is_reward_model:
      raise errors.CheckpointError(
        f'{self.about.path} is a language model and gives no scores; call '
        'logprobs, or load a reward model.'
      )
    lengths = self.about.lengths
    limits = lengths.get('inputs'), lengths.get('targets')
    return self._score(prompts, responses, images, limits, kinds.POINTWISE)

  def logprobs(
    self,
    prompts: Sequence[str],
    responses: Sequence[str],
    images: Images = None,
  ) -> list[float]:
    """Returns the log-probability of one response to each prompt.

    Args:
      prompts: the prompts, of any length.
      responses: one per prompt.
      images: one entry per prompt, for models that read images; see
        `prompt_images.read`.

    Returns:
      Log-probabilities in nats, summed over the tokens of the response and EOS.

    Raises:
      CheckpointError: this is a reward model.
      DataError: images cannot be read, or the model reads none.
    """
    self._check_writes()
    return self._score(
      *(prompts, responses, images),
      (None, None),
      kinds.SFT,
    )

  def generate(
    self,
    prompts: Sequence[str],
    images: Images = None,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int | None = None,
    num_samples: int = 1,
    max_length: int | None = None,
    seed: int = 0,
  ) -> list[str] | list[list[str]]:
    """Answers prompts; see `perlhf generate` for the arguments.

    Args:
      prompts: the prompts.
      images: one entry per prompt, for models that read images; see
        `prompt_images.read`.
      temperature: divides the logits; None for 1, 0 for the likeliest tokens.
      top_k: samples from the k likeliest tokens.
      top_p: samples from the fewest tokens that have this probability together.
      num_beams: width of a beam search, instead of sampling.
      num_samples: responses per prompt.
      max_length: longest response in tokens, EOS included; None for the length
        of the training, or 128 if unknown.
      seed: seed of the sampling. The samples depend only on the seed, the
        prompt and its place among the prompts.

    Returns:
      A string per prompt, or a list of `num_samples` strings per prompt if
      `num_samples` is more than one.

    Raises:
      CheckpointError: this is a reward model.
      ConfigError: arguments exclude each other.
      DataError: images cannot be read, or the model reads none.
    """
    self._check_writes()
    config = generate_lib.decoding_config(
      max_length, temperature, top_k, top_p, num_beams, num_samples
    )
    lengths, vocabulary = self.about.lengths, self.about.vocabulary
    config = dataclasses.replace(
      config,
      max_length=max_length or lengths.get('targets', generate_lib.MAX_LENGTH),
    )
    image_rows, image_spec = prompt_images.read(
      self.about, images, len(prompts)
    )
    if (config, seed) not in self._decoders:
      self._decoders[config, seed] = generate_lib.make_decoder(
        self._loaded, config, seed, self._mesh
      )
    responses = generate_lib.decode_prompts(
      [
        self.about.tokenize(prompt, f'prompt {index}')
        for index, prompt in enumerate(prompts)
      ],
      self._decoders[config, seed],
      batch_size=self._batch_size,
      prompt_length=lengths.get('inputs'),
      truncate_prompt=self.about.truncate_prompt,
      image_rows=image_rows,
      image_spec=image_spec,
    )
    texts = [
      [vocabulary.decode(tokens.tolist()) for tokens in several]
      for several in responses
    ]
    return texts if num_samples > 1 else [several[0] for several in texts]

  def _score(self, prompts, responses, images, limits, kind) -> list[float]:
    if len(prompts) != len(responses):
      raise errors.DataError(
        f'There are {len(prompts)} prompts and {len(responses)} responses; '
        'give one response to each prompt.'
      )
    image_rows, image_spec = prompt_images.read(
      self.about, images, len(prompts)
    )
    if self._scorer is None:
      self._scorer = score_lib.make_scorer(self._loaded, self._mesh)

    examples: list[Mapping[str, Any]] = [
      {
        'inputs': self.about.tokenize(prompt, f'prompt {index}'),
        'targets': self.about.tokenize(response, f'response {index}'),
        'label': 0.0,
      }
      for index, (prompt, response) in enumerate(
        zip(prompts, responses, strict=True)
      )
    ]
    batches = score_lib.make_batches(
      [len(example['inputs']) for example in examples],
      [len(example['targets']) for example in examples],
      limits,
      self._batch_size,
    )
    scores = score_lib.score_examples(
      examples,
      batches,
      self._scorer,
      kind,
      batch_size=self._batch_size,
      truncate_prompt=self.about.truncate_prompt,
      image_rows=image_rows,
      image_spec=image_spec,
    )
    for index in np.flatnonzero(~np.isfinite(scores)):
      raise errors.CheckpointError(
        f'{self.about.path} gives response {index} the number '
        f'{scores[index]}, which is not finite. Its weights may be damaged, or '
        'its training failed.'
      )
    return scores.tolist()

  def _check_writes(self) -> None:
    if self.about.is_reward_model:
      raise errors.CheckpointError(
        f'{self.about.path} is a reward model, which scores text and cannot '
        'write it; call score, or load a language model.'
      )

"""Scores lines of text: rewards, or log-probabilities of responses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.data import feature_converters
from perlhf_jax.data import images
from perlhf_jax.data import length_buckets
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.objectives import losses
from perlhf_jax.stages import backbones
from perlhf_jax.stages import line_files
from perlhf_jax.stages import line_images
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import run_metadata
from perlhf_jax.stages import trained_models
from perlhf_jax.training import compiled_step
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# A host batch of SFT or pointwise features -> numbers [batch]
BatchScorer = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def score(
  *,
  checkpoint: str,
  input_path: str,
  output_path: str,
  batch_size: int = 32,
  base_checkpoint: str | None = None,
  prompt_length: int | None = None,
  response_length: int | None = None,
  mesh_shape: str = '-1,1,1',
) -> None:
  """Writes every input line with a number added, in the same order.

  A reward model adds `score`. Its inputs are cut to the lengths it was
  trained with, or to those given. A language model adds `logprob`, the summed
  log-probability in nats of the response and EOS; a response is never cut for
  it, and a prompt only to a `prompt_length` that is given. Where `response` is
  a list, as `perlhf generate --num_samples=3` writes it, the number is a list
  too, in the same order.

  Args:
    checkpoint: MODEL_DIR, one of its steps, or a Hugging Face T5 directory.
    input_path: JSON lines with the string `prompt`, the string `response` or
      a list of them, and, for models of images, `image`; see `line_images`.
    output_path: where to write.
    batch_size: lines scored at once; it does not change the scores.
    base_checkpoint: where the adapter's base is, if it has been moved.
    prompt_length: longest prompt in tokens, EOS included.
    response_length: longest response in tokens, for reward models.
    mesh_shape: sizes of (data, fsdp, tensor), separated by commas; one of
      them may be -1.

  Raises:
    UserError: a bad line (file and number are named) or checkpoint, or a
      number that is not finite; nothing has been written then.
  """
  mesh = partitioning.make_mesh(partitioning.parse_mesh_shape(mesh_shape))
  partitioning.check_batch_size(batch_size, mesh)
  with multihost.together():
    rows = line_files.read(
      input_path, ('prompt', 'response'), several=('response',)
    )
  line_files.check_output(output_path)
  loaded = backbones.load_checkpoint(checkpoint, mesh, base_checkpoint)
  is_reward = (
    isinstance(loaded, backbones.Checkpoint)
    and loaded.metadata.kind == run_metadata.REWARD
  )
  if is_reward:
    lengths = loaded.metadata.task_feature_lengths
    prompt_length = prompt_length or lengths['inputs']
    response_length = response_length or lengths['targets']
    scorer = _reward_scorer(loaded, mesh)
  else:
    if response_length is not None:
      raise errors.ConfigError(
        '--response_length cuts responses, and the log-probability of a cut '
        'response is not that of the response. Leave it out.'
      )
    scorer = _logprob_scorer(loaded, mesh)
  backbone = getattr(loaded, 'backbone', loaded)
  backbone.release()
  image_rows, image_spec = line_images.read(loaded, rows, input_path)
  # The row of each example: one for each of its responses.
  row_of = [
    index for index, row in enumerate(rows) for _ in _responses(row['response'])
  ]
  examples = [
    {
      'inputs': feature_converters.tokenize_prompt(
        backbone.vocabulary, row['prompt']
      ),
      'targets': feature_converters.tokenize_response(
        backbone.vocabulary, response
      ),
      'label': 0.0,
    }
    for row in rows
    for response in _responses(row['response'])
  ]
  for kind, feature, limit in (
    ('prompt', 'inputs', prompt_length),
    ('response', 'targets', response_length),
  ):
    line_files.report_cuts(kind, [len(e[feature]) for e in examples], limit)
  policy = loaded.metadata.truncate_prompt if is_reward else 'keep_end'
  scores = score_examples(
    examples,
    scorer,
    feature_converters.PointwiseConverter
    if is_reward
    else feature_converters.SftConverter,
    batch_size=batch_size,
    limits=(prompt_length, response_length),
    truncate_prompt=policy,
    image_rows=[image_rows[index] for index in row_of],
    image_spec=image_spec,
  )
  name = 'score' if is_reward else 'logprob'
  for index in np.flatnonzero(~np.isfinite(scores)):
    raise errors.CheckpointError(
      f'{input_path}:{row_of[index] + 1}: {checkpoint} gives the {name} '
      f'{scores[index]}, which is not finite. Its weights may be damaged, or '
      'its training failed; nothing was written.'
    )
  by_row = [[] for _ in rows]
  for index, value in zip(row_of, scores, strict=True):
    by_row[index].append(float(value))
  line_files.write(
    output_path,
    (
      {**row, name: values if isinstance(row['response'], list) else values[0]}
      for row, values in zip(rows, by_row, strict=True)
    ),
  )
  logging.info('Wrote %d lines with %r to %s.', len(rows), name, output_path)


def _responses(response: str | Sequence[str]) -> Sequence[str]:
  return [response] if isinstance(response, str) else response


def score_examples(
  examples: Sequence[Mapping[str, Any]],
  scorer: BatchScorer,
  converter_class: type[feature_converters.Converter],
  *,
  batch_size: int,
  limits: tuple[int | None, int | None],
  truncate_prompt: str,
  image_rows: Sequence[Sequence[images.Image]] = (),
  image_spec: images.ImageSpec | None = None,
) -> np.ndarray:
  """Scores tokenised examples, similar lengths together.

  Args:
    examples: `inputs` and `targets` as tokens with EOS.
    scorer: scores one batch.
    converter_class: makes what the scorer reads.
    batch_size: rows of a batch.
    limits: longest prompt and response; None for no limit.
    truncate_prompt: which end of a long prompt to keep.
    image_rows: the images of each example.
    image_spec: how they are decoded; None without images.

  Returns:
    float64 `[examples]`, in the order of `examples`.
  """

  def convert(indices):
    part = [examples[i] for i in indices]
    lengths = [
      length_buckets.padded_length(max(len(e[name]) for e in part), limit)
      for name, limit in zip(('inputs', 'targets'), limits, strict=True)
    ]
    converter = converter_class(*lengths, truncate_prompt=truncate_prompt)
    return converter(part, batch_size)

  def images_of(indices):
    padding = [()] * (batch_size - len(indices))
    return [*(image_rows[i] for i in indices), *padding]

  scores = np.zeros(len(examples))
  totals = [len(e['inputs']) + len(e['targets']) for e in examples]
  parts = list(length_buckets.batches_by_length(totals, batch_size))
  batches = images.attach(
    map(convert, parts), map(images_of, parts), image_spec
  )
  for indices, batch in zip(parts, batches, strict=True):
    scores[indices] = scorer(batch)[: len(indices)]
  return scores


def _reward_scorer(
  checkpoint: backbones.Checkpoint, mesh: partitioning.LogicalMesh
) -> BatchScorer:
  model, variables = trained_models.place_reward_model(checkpoint, mesh)
  scorer = reward_scoring.make_scorer(model, mesh, reward_scoring.POINTWISE)
  return lambda batch: scorer(variables, {}, batch)['scores']


def _logprob_scorer(
  loaded: backbones.Checkpoint | backbones.Backbone,
  mesh: partitioning.LogicalMesh,
) -> BatchScorer:
  model, variables = trained_models.place_backbone(loaded, mesh)
  compiled = compiled_step.CompiledStep(
    lambda variables, batch: token_logprobs(model, variables, batch),
    mesh,
    name='log-probabilities',
    out_shardings=partitioning.batch_sharding(mesh),
  )

  def scorer(batch):
    logprobs = compiled(variables, placement.put_batch(batch, mesh))
    # In float64: a float32 sum of a long response is off by 1e-4.
    return placement.to_host(logprobs).astype(np.float64).sum(axis=1)

  return scorer


def token_logprobs(
  model: t5.T5, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns log π of each response token, EOS included, and 0 on padding.

  Returns:
    float32 `[batch, response_length]`, in nats.
  """
  logits = model.apply(
    variables, prompts.of_batch(batch), batch['decoder_input_tokens']
  )
  logprobs = losses.token_logprobs(logits, batch['decoder_target_tokens'])
  return jnp.where(batch['decoder_loss_weights'] > 0, logprobs, 0.0)

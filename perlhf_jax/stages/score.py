"""Scores lines of text: rewards, or log-probabilities of responses."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Annotated, Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import placed
from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.data import feature_converters
from perlhf_jax.data import images
from perlhf_jax.data import kinds
from perlhf_jax.data import length_buckets
from perlhf_jax.models import activation_bytes
from perlhf_jax.models import output_layer
from perlhf_jax.models import prompts
from perlhf_jax.models import t5
from perlhf_jax.models import t5_config
from perlhf_jax.objectives import losses
from perlhf_jax.stages import batch_memory
from perlhf_jax.stages import line_files
from perlhf_jax.stages import line_images
from perlhf_jax.stages import reward_scoring
from perlhf_jax.training import compiled_step
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# A host batch of sft or pointwise features -> numbers [batch]
BatchScorer = Callable[[Mapping[str, np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LineBatch:
  """Lines that are scored together.

  Attributes:
    indices: the indices of the lines.
    lengths: the lengths to which their prompts and responses are padded.
  """

  indices: Sequence[int]
  lengths: tuple[int, int]


class Limit(NamedTuple):
  """The longest text of a kind.

  Attributes:
    tokens: the length to which longer texts are cut; None if they are not.
    setting: what sets it, such as a flag.
    remedy: how to read a text that needs too much memory, with `{}` for the
      tokens that fit.
  """

  tokens: int | None
  setting: str
  remedy: str


def score(
  *,
  checkpoint: str,
  input_path: str,
  output_path: str,
  batch_size: Annotated[int, checks.AtLeastOne] = 32,
  base_checkpoint: str | None = None,
  prompt_length: Annotated[int, checks.AtLeastOne] | None = None,
  response_length: Annotated[int, checks.AtLeastOne] | None = None,
  mesh_shape: Sequence[int] = (-1, 1, 1),
) -> None:
  """Writes every input line with a number added, in the same order.

  A reward model adds `score`. Its inputs are cut to the given lengths, or to
  those of its training. A language model adds `logprob`, the summed
  log-probability in nats of the response and EOS; it never cuts responses, and
  cuts prompts only to a given `prompt_length`. A cut prompt keeps the same end
  as in training. If `response` is a list, as `perlhf generate --num_samples=3`
  writes it, the number is a list too, in the same order. Lines that need too
  much memory are refused before any line is scored.

  Args:
    checkpoint: a MODEL_DIR, one of its steps, or a directory of any format that
      `perlhf inspect` knows.
    input_path: a .jsonl file of lines {"prompt": ..., "response": ...}, where
      "response" may be a list; with "image", a path or a list of paths, for
      models of images.
    output_path: the file to write: the same lines with "score" or "logprob".
    batch_size: responses per batch; it does not change the scores.
    base_checkpoint: path of an adapter's base, if it is not where the adapter
      records it.
    prompt_length: longest prompt in tokens, EOS included; by default the
      length of the training for a reward model, and no limit for a language
      model.
    response_length: longest response in tokens, for reward models only; by
      default the length of the training.
    mesh_shape: devices as (data, fsdp, tensor), for models that do not fit on
      one device; one of the sizes may be -1.

  Raises:
    UserError: a line is bad or too long (the message names file and number),
      the checkpoint is bad, or a number is not finite; nothing is written then.
  """
  mesh = partitioning.make_mesh(mesh_shape)
  partitioning.check_batch_size(batch_size, mesh)
  with multihost.together():
    rows = line_files.read(
      input_path, ('prompt', 'response'), several=('response',)
    )
  line_files.check_output(output_path)
  scorer, model = _load_scorer(checkpoint, mesh, base_checkpoint)
  is_reward = model.is_reward_model
  if is_reward:
    prompt_length = prompt_length or model.lengths.get('inputs')
    response_length = response_length or model.lengths.get('targets')
  elif response_length is not None:
    raise errors.ConfigError(
      '--response_length would cut responses and so change their '
      'log-probabilities. Leave it out.'
    )
  numbers = score_rows(
    model,
    scorer,
    rows,
    [_responses(row['response']) for row in rows],
    source=input_path,
    mesh=mesh,
    batch_size=batch_size,
    limits={
      'prompt': Limit(
        prompt_length,
        '--prompt_length',
        '--prompt_length={} (cuts longer prompts)',
      ),
      'response': Limit(
        response_length,
        '--response_length',
        '--response_length={} (cuts longer responses)'
        if is_reward
        # A cut response is another response, with another log-probability.
        else 'a file without that line',
      ),
    },
  )
  name = 'score' if is_reward else 'logprob'
  line_files.write(
    output_path,
    (
      {**row, name: values if isinstance(row['response'], list) else values[0]}
      for row, values in zip(rows, numbers, strict=True)
    ),
  )
  logging.info('Wrote %d line(s) with %r to %s.', len(rows), name, output_path)


def score_rows(
  model: loaded_model.LoadedModel,
  scorer: BatchScorer,
  rows: Sequence[Mapping[str, Any]],
  responses: Sequence[Sequence[str]],
  *,
  source: str,
  mesh: partitioning.LogicalMesh,
  batch_size: int,
  limits: Mapping[str, Limit],
) -> list[list[float]]:
  """Scores the responses to the prompts of a file.

  Args:
    model: the model, without weights.
    scorer: from `make_scorer` of the model.
    rows: the lines of the file, each with a `prompt` and perhaps images.
    responses: the responses to each prompt, at least one.
    source: path of the file, for messages.
    mesh: the mesh.
    batch_size: responses per batch; it does not change the scores.
    limits: the longest `prompt` and `response`.

  Returns:
    A number for each response of each row.

  Raises:
    UserError: a line is bad or too long, or a number is not finite.
  """
  is_reward = model.is_reward_model
  image_rows, image_spec = line_images.read(model, rows, source)
  # The row of each example; a row has one example per response.
  row_of = [index for index, row in enumerate(responses) for _ in row]
  examples = [
    {
      'inputs': model.tokenize(row['prompt'], f'{source}:{number}: the prompt'),
      'targets': model.tokenize(response, f'{source}:{number}: the response'),
      'label': 0.0,
    }
    for number, (row, several) in enumerate(
      zip(rows, responses, strict=True), start=1
    )
    for response in several
  ]
  lengths = {
    kind: [len(example[feature]) for example in examples]
    for kind, feature in (('prompt', 'inputs'), ('response', 'targets'))
  }
  for kind, limit in limits.items():
    line_files.report_cuts(kind, lengths[kind], limit.tokens, limit.setting)
  tokens = limits['prompt'].tokens, limits['response'].tokens
  bound = _make_bound(model.config, image_spec, is_reward=is_reward)
  batches = sorted(
    make_batches(*lengths.values(), tokens, batch_size),
    # The largest batch first: if it does not fit, this fails early.
    key=lambda batch: -bound(1, 1, *batch.lengths),
  )
  with batch_memory.must_fit(
    bound,
    mesh,
    batch_size,
    [
      batch_memory.line_length(
        *(kind, source, _by_row(batch.indices, lengths[kind], row_of)),
        *(limits[kind].tokens, padded, limits[kind].remedy),
      )
      for batch in batches[:1]
      for kind, padded in zip(limits, batch.lengths, strict=True)
    ],
  ):
    scores = score_examples(
      examples,
      batches,
      scorer,
      kinds.POINTWISE if is_reward else kinds.SFT,
      batch_size=batch_size,
      truncate_prompt=model.truncate_prompt,
      image_rows=[image_rows[index] for index in row_of],
      image_spec=image_spec,
    )
  name = 'score' if is_reward else 'logprob'
  for index in np.flatnonzero(~np.isfinite(scores)):
    raise errors.CheckpointError(
      f'{source}:{row_of[index] + 1}: {model.path} gives the {name} '
      f'{scores[index]}, which is not finite. Its weights may be damaged, or '
      'its training failed; nothing was written.'
    )
  by_row = [[] for _ in rows]
  for index, value in zip(row_of, scores, strict=True):
    by_row[index].append(float(value))
  return by_row


def make_batches(
  prompt_lengths: Sequence[int],
  response_lengths: Sequence[int],
  limits: tuple[int | None, int | None],
  batch_size: int,
) -> list[LineBatch]:
  """Makes batches of lines with similar lengths.

  Args:
    prompt_lengths: tokens of each prompt.
    response_lengths: tokens of each response.
    limits: longest prompt and response; None for no limit.
    batch_size: lines per batch; the last batch may have fewer.
  """
  both = prompt_lengths, response_lengths
  totals = [sum(pair) for pair in zip(*both, strict=True)]
  return [
    LineBatch(
      indices,
      tuple(
        length_buckets.padded_length(max(lengths[i] for i in indices), limit)
        for lengths, limit in zip(both, limits, strict=True)
      ),
    )
    for indices in length_buckets.batches_by_length(totals, batch_size)
  ]


def _by_row(
  indices: Sequence[int], lengths: Sequence[int], row_of: Sequence[int]
) -> dict[int, int]:
  """Returns the longest length among some examples, for each of their rows."""
  # The longest of each row comes last, and overwrites the others.
  ordered = sorted(indices, key=lambda index: lengths[index])
  return {row_of[index]: lengths[index] for index in ordered}


def _responses(response: str | Sequence[str]) -> Sequence[str]:
  return [response] if isinstance(response, str) else response


def score_examples(
  examples: Sequence[Mapping[str, Any]],
  batches: Sequence[LineBatch],
  scorer: BatchScorer,
  kind: kinds.Kind,
  *,
  batch_size: int,
  truncate_prompt: str,
  image_rows: Sequence[Sequence[images.Image]] = (),
  image_spec: images.ImageSpec | None = None,
) -> np.ndarray:
  """Scores tokenised examples.

  Args:
    examples: `inputs` and `targets` as tokens with EOS.
    batches: which examples are scored together.
    scorer: scores one batch.
    kind: the kind of task that has the scorer's features.
    batch_size: rows per batch.
    truncate_prompt: which end of a long prompt to keep.
    image_rows: the images of each example.
    image_spec: how to decode images; None without images.

  Returns:
    float64 `[examples]`, in the order of `examples`.
  """

  def convert(batch):
    converter = feature_converters.Converter(
      kind, *batch.lengths, truncate_prompt=truncate_prompt
    )
    cut = [converter.cut(examples[i]) for i in batch.indices]
    return converter(cut, batch_size)

  def images_of(batch):
    padding = [()] * (batch_size - len(batch.indices))
    return [*(image_rows[i] for i in batch.indices), *padding]

  scores = np.zeros(len(examples))
  converted = images.attach(
    map(convert, batches), map(images_of, batches), image_spec
  )
  for batch, features in zip(batches, converted, strict=True):
    scores[batch.indices] = scorer(features)[: len(batch.indices)]
  return scores


def _make_bound(
  config: t5_config.T5Config,
  image_spec: images.ImageSpec | None,
  *,
  is_reward: bool,
) -> batch_memory.Bound:
  image_tokens = line_images.num_tokens(config, image_spec)

  def bound(rows, tensor, prompt_length, response_length):
    return activation_bytes.scoring_bytes(
      config,
      batch=rows,
      prompt_length=image_tokens + prompt_length,
      response_length=response_length,
      with_logits=not is_reward,
      tensor=tensor,
    )

  return bound


def _load_scorer(
  checkpoint: str,
  mesh: partitioning.LogicalMesh,
  base_checkpoint: str | None,
) -> tuple[BatchScorer, loaded_model.LoadedModel]:
  """Returns a function that scores batches, and the model without weights."""
  loaded = loading.load(checkpoint, mesh, base_checkpoint)
  return make_scorer(loaded, mesh), loaded.without_weights()


def make_scorer(
  loaded: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
) -> BatchScorer:
  """Returns a function that scores batches.

  Args:
    loaded: a reward model, for its scores; or a language model, for the summed
      log-probability in nats of the response and EOS.
    mesh: the mesh, on which batches are put.
  """
  make = _reward_scorer if loaded.is_reward_model else _logprob_scorer
  return make(loaded, mesh)


def _reward_scorer(
  loaded: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
) -> BatchScorer:
  model, variables = placed.place_reward_model(loaded, mesh)
  scorer = reward_scoring.make_scorer(model, mesh, kinds.POINTWISE)
  return lambda batch: scorer(variables, {}, batch)['scores']


def _logprob_scorer(
  loaded: loaded_model.LoadedModel, mesh: partitioning.LogicalMesh
) -> BatchScorer:
  model, variables = placed.place(loaded, mesh)
  compiled = compiled_step.CompiledStep(
    lambda variables, batch: token_logprobs(model, variables, batch),
    mesh,
    name='log-probabilities',
    out_shardings=partitioning.batch_sharding(mesh),
  )

  def scorer(batch):
    logprobs = compiled(variables, placement.put_batch(batch, mesh))
    # Sums in float64: the float32 sum of a long response is off by 1e-4.
    return placement.to_host(logprobs).astype(np.float64).sum(axis=1)

  return scorer


def token_logprobs(
  model: t5.T5, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns log π of each response token, EOS included, and 0 at padding.

  Returns:
    float32 `[batch, response_length]`, in nats.
  """

  def read(logits, targets):
    return losses.token_logprobs(logits, targets), ()

  hidden = model.apply(
    variables,
    prompts.of_batch(batch),
    batch['decoder_input_tokens'],
    method='hidden',
  )
  logprobs, _ = output_layer.per_token(
    model, variables, hidden, read, batch['decoder_target_tokens']
  )
  return jnp.where(batch['decoder_loss_weights'] > 0, logprobs, 0.0)

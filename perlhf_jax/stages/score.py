"""Scores lines of text: rewards, or log-probabilities of responses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from perlhf_jax.core import errors
from perlhf_jax.data import feature_converters
from perlhf_jax.models import t5
from perlhf_jax.objectives import losses
from perlhf_jax.stages import backbones
from perlhf_jax.stages import reward_scoring
from perlhf_jax.stages import run_metadata
from perlhf_jax.stages import trained_models
from perlhf_jax.training import compiled_step
from perlhf_jax.training import partitioning

# Batches are padded to few lengths, so that few programs are compiled.
_SHORTEST = 16

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
) -> None:
  """Writes every input line with a number added, in the same order.

  A reward model adds `score`. Its inputs are cut to the lengths it was
  trained with, or to those given. A language model adds `logprob`, the summed
  log-probability in nats of the response and EOS; a response is never cut for
  it, and a prompt only to a `prompt_length` that is given.

  Args:
    checkpoint: MODEL_DIR, one of its steps, or a Hugging Face T5 directory.
    input_path: JSON lines with the strings `prompt` and `response`.
    output_path: where to write.
    batch_size: lines scored at once; it does not change the scores.
    base_checkpoint: where the adapter's base is, if it has been moved.
    prompt_length: longest prompt in tokens, EOS included.
    response_length: longest response in tokens, for reward models.

  Raises:
    UserError: a bad line (file and number are named) or checkpoint; nothing
      has been written then.
  """
  mesh = partitioning.make_mesh()
  partitioning.check_batch_size(batch_size, mesh)
  rows = read_rows(input_path)
  output = epath.Path(output_path)
  _check_writable(output)
  loaded = backbones.load_checkpoint(checkpoint, base_checkpoint)
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
  examples = [
    {
      'inputs': feature_converters.tokenize_prompt(
        backbone.vocabulary, row['prompt']
      ),
      'targets': feature_converters.tokenize_response(
        backbone.vocabulary, row['response']
      ),
      'label': 0.0,
    }
    for row in rows
  ]
  _report_cuts(examples, prompt_length, response_length)
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
  )
  name = 'score' if is_reward else 'logprob'
  temporary = output.with_name(output.name + '.tmp')
  with temporary.open('w') as file:
    for row, value in zip(rows, scores, strict=True):
      line = json.dumps({**row, name: float(value)}, ensure_ascii=False)
      file.write(line + '\n')
  temporary.replace(output)
  logging.info('Wrote %d lines with %r to %s.', len(rows), name, output_path)


def read_rows(path: str) -> list[dict[str, Any]]:
  """Reads JSON lines with the strings `prompt` and `response`.

  Raises:
    DataError: the file cannot be read, or a line is not such an object.
  """
  try:
    lines = epath.Path(path).read_text().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise errors.DataError(f'Cannot read --input={path}: {error}.') from error
  rows = []
  for number, line in enumerate(lines, start=1):
    where = f'{path}:{number}'
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise errors.DataError(f'{where} is not JSON: {error}.') from error
    if not isinstance(row, dict):
      raise errors.DataError(
        f'{where} is not an object with "prompt" and "response".'
      )
    for field in ('prompt', 'response'):
      if not isinstance(row.get(field), str):
        raise errors.DataError(
          f'{where} has no string {field!r}; each line must be '
          '{"prompt": "…", "response": "…"}.'
        )
    if not row['response']:
      raise errors.DataError(f'{where} has an empty response; remove the line.')
    rows.append(row)
  return rows


def score_examples(
  examples: Sequence[Mapping[str, Any]],
  scorer: BatchScorer,
  converter_class: type[feature_converters.Converter],
  *,
  batch_size: int,
  limits: tuple[int | None, int | None],
  truncate_prompt: str,
) -> np.ndarray:
  """Scores tokenised examples, similar lengths together.

  Args:
    examples: `inputs` and `targets` as tokens with EOS.
    scorer: scores one batch.
    converter_class: makes what the scorer reads.
    batch_size: rows of a batch.
    limits: longest prompt and response; None for no limit.
    truncate_prompt: which end of a long prompt to keep.

  Returns:
    float64 `[examples]`, in the order of `examples`.
  """
  scores = np.zeros(len(examples))
  for indices in _batches_by_length(examples, batch_size):
    part = [examples[i] for i in indices]
    lengths = [
      _padded_length(max(len(e[name]) for e in part), limit)
      for name, limit in zip(('inputs', 'targets'), limits, strict=True)
    ]
    converter = converter_class(*lengths, truncate_prompt=truncate_prompt)
    scores[indices] = scorer(converter(part, batch_size))[: len(indices)]
  return scores


def _batches_by_length(examples, batch_size: int) -> Iterator[list[int]]:
  order = sorted(
    range(len(examples)),
    key=lambda i: len(examples[i]['inputs']) + len(examples[i]['targets']),
  )
  for start in range(0, len(order), batch_size):
    yield order[start : start + batch_size]


def _padded_length(longest: int, limit: int | None) -> int:
  length = _SHORTEST
  while length < longest:
    length *= 2
  return length if limit is None else min(length, limit)


def _reward_scorer(
  checkpoint: backbones.Checkpoint, mesh: jax.sharding.Mesh
) -> BatchScorer:
  model, variables = trained_models.place_reward_model(checkpoint, mesh)
  scorer = reward_scoring.make_scorer(model, mesh, reward_scoring.POINTWISE)
  return lambda batch: scorer(variables, {}, batch)['scores']


def _logprob_scorer(
  loaded: backbones.Checkpoint | backbones.Backbone, mesh: jax.sharding.Mesh
) -> BatchScorer:
  model, variables = trained_models.place_backbone(loaded, mesh)
  compiled = compiled_step.CompiledStep(
    lambda variables, batch: token_logprobs(model, variables, batch),
    mesh,
    name='log-probabilities',
    out_shardings=partitioning.batch_sharding(mesh),
  )

  def scorer(batch):
    logprobs = compiled(variables, partitioning.shard_batch(batch, mesh))
    # In float64: a float32 sum of a long response is off by 1e-4.
    return partitioning.to_host(logprobs).astype(np.float64).sum(axis=1)

  return scorer


def token_logprobs(
  model: t5.T5, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns log π of each response token, EOS included, and 0 on padding.

  Returns:
    float32 `[batch, response_length]`, in nats.
  """
  logits = model.apply(
    variables, batch['encoder_input_tokens'], batch['decoder_input_tokens']
  )
  logprobs = losses.token_logprobs(logits, batch['decoder_target_tokens'])
  return jnp.where(batch['decoder_loss_weights'] > 0, logprobs, 0.0)


def _report_cuts(
  examples: Sequence[Mapping[str, Any]],
  prompt_length: int | None,
  response_length: int | None,
) -> None:
  for name, feature, limit in (
    ('prompt', 'inputs', prompt_length),
    ('response', 'targets', response_length),
  ):
    cut = sum(limit is not None and len(e[feature]) > limit for e in examples)
    if cut:
      logging.warning(
        '%d of %d %ss are longer than %d tokens and are cut; '
        '--%s_length sets another limit.',
        cut,
        len(examples),
        name,
        limit,
        name,
      )


def _check_writable(output: epath.Path) -> None:
  if not output.parent.exists():
    raise errors.ConfigError(
      f'The folder of --output={output} does not exist; make it first.'
    )

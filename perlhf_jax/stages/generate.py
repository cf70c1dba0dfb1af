"""Answers lines of text: sampled, greedy or beam-searched responses."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Annotated

from absl import logging
import jax
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
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.models import t5_config
from perlhf_jax.sampling import beam
from perlhf_jax.sampling import sampler
from perlhf_jax.stages import batch_memory
from perlhf_jax.stages import line_files
from perlhf_jax.stages import line_images
from perlhf_jax.training import compiled_step
from perlhf_jax.training import multihost
from perlhf_jax.training import partitioning
from perlhf_jax.training import placement

# For checkpoints that do not record their length.
MAX_LENGTH = 128
_LOG_SECONDS = 10

Config = sampler.SamplingConfig | beam.BeamConfig
# Prompts with their `line` index -> tokens and mask [batch, responses, length]
Decoder = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]


def generate(
  *,
  checkpoint: str,
  input_path: str,
  output_path: str,
  temperature: Annotated[float, checks.NotNegative] | None = None,
  top_k: Annotated[int, checks.AtLeastOne] | None = None,
  top_p: Annotated[float, checks.NotNegative] | None = None,
  num_beams: Annotated[int, checks.AtLeastOne] | None = None,
  num_samples: Annotated[int, checks.AtLeastOne] = 1,
  max_length: Annotated[int, checks.AtLeastOne] | None = None,
  seed: Annotated[int, checks.NotNegative] = 0,
  batch_size: Annotated[int, checks.AtLeastOne] = 32,
  base_checkpoint: str | None = None,
  prompt_length: Annotated[int, checks.AtLeastOne] | None = None,
  mesh_shape: Sequence[int] = (-1, 1, 1),
) -> None:
  """Writes every input line with `response` added, in the same order.

  `response` is a string, or a list of `num_samples` strings if that is more
  than one; it replaces a `response` of the input. The samples of a line depend
  only on the seed, the line's number and its prompt. Lengths that need too much
  memory are refused before any prompt is answered.

  Args:
    checkpoint: a MODEL_DIR, one of its steps, or a directory of any format that
      `perlhf inspect` knows.
    input_path: a .jsonl file of lines {"prompt": ...}; with "image", a path or
      a list of paths, for models of images.
    output_path: the file to write: the same lines with "response".
    temperature: divides the logits, 1 by default; 0 takes the likeliest token.
    top_k: samples from the k likeliest tokens; by default from all.
    top_p: samples from the fewest likeliest tokens that have this probability
      together; by default from all.
    num_beams: width of a beam search, as in transformers, instead of sampling.
    num_samples: responses per prompt; "response" is a list if several.
    max_length: longest response in tokens, EOS included; by default the
      length of the training, or 128 if unknown.
    seed: seed of the sampling, below 2**32.
    batch_size: prompts per batch; it does not change the responses.
    base_checkpoint: path of an adapter's base, if it is not where the adapter
      records it.
    prompt_length: longest prompt in tokens, EOS included; by default the
      length of the training, or no limit if unknown.
    mesh_shape: devices as (data, fsdp, tensor), for models that do not fit on
      one device; one of the sizes may be -1.

  Raises:
    UserError: flags exclude each other, a line is bad or too long (the message
      names file and number), or the checkpoint is bad; nothing is written then.
  """
  mesh = partitioning.make_mesh(mesh_shape)
  partitioning.check_batch_size(batch_size, mesh)
  if not 0 <= seed < 2**32:
    raise errors.ConfigError(f'--seed={seed} is not between 0 and 2**32 - 1.')
  config = decoding_config(
    max_length, temperature, top_k, top_p, num_beams, num_samples
  )
  with multihost.together():
    rows = line_files.read(input_path, ('prompt',))
  line_files.check_output(output_path)
  decoder, config, model = _load_decoder(
    checkpoint, mesh, base_checkpoint, config, max_length, seed
  )
  prompt_length = prompt_length or model.lengths.get('inputs')
  image_rows, image_spec = line_images.read(model, rows, input_path)
  vocabulary = model.vocabulary
  prompts = [
    model.tokenize(row['prompt'], f'{input_path}:{number}: the prompt')
    for number, row in enumerate(rows, start=1)
  ]
  lengths = [len(prompt) for prompt in prompts]
  line_files.report_cuts('prompt', lengths, prompt_length, '--prompt_length')
  with batch_memory.must_fit(
    _make_bound(
      model.config,
      num_beams or num_samples,
      line_images.num_tokens(model.config, image_spec),
    ),
    mesh,
    batch_size,
    _longest(input_path, lengths, prompt_length, config.max_length),
  ):
    responses = decode_prompts(
      prompts,
      decoder,
      batch_size=batch_size,
      prompt_length=prompt_length,
      truncate_prompt=model.truncate_prompt,
      image_rows=image_rows,
      image_spec=image_spec,
    )
  texts = [
    [vocabulary.decode(tokens.tolist()) for tokens in several]
    for several in responses
  ]
  line_files.write(
    output_path,
    (
      {**row, 'response': several if num_samples > 1 else several[0]}
      for row, several in zip(rows, texts, strict=True)
    ),
  )
  logging.info('Wrote %d line(s) with responses to %s.', len(rows), output_path)


def decode_prompts(
  prompts: Sequence[np.ndarray],
  decoder: Decoder,
  *,
  batch_size: int,
  prompt_length: int | None,
  truncate_prompt: str,
  image_rows: Sequence[Sequence[images.Image]] = (),
  image_spec: images.ImageSpec | None = None,
) -> list[list[np.ndarray]]:
  """Answers tokenised prompts in batches of similar lengths, the longest first.

  Args:
    prompts: tokens of each prompt, int32 `[length]`, with EOS.
    decoder: answers one batch.
    batch_size: rows per batch.
    prompt_length: longest prompt; None for no limit.
    truncate_prompt: which end of a long prompt to keep.
    image_rows: the images of each prompt.
    image_spec: how to decode images; None without images.

  Returns:
    The responses to each prompt in the order of `prompts`, int32 `[length]`,
    without EOS and padding.
  """
  responses: list[list[np.ndarray]] = [[] for _ in prompts]
  done = 0
  lengths = [len(prompt) for prompt in prompts]
  parts = list(length_buckets.batches_by_length(lengths, batch_size))
  # The longest batch first: if it does not fit, this fails early.
  parts.reverse()

  def fill(lines):
    # Padding rows of the last batch repeat a line: an empty prompt might never
    # reach EOS, and the other rows would wait for it.
    return lines + [lines[-1]] * (batch_size - len(lines))

  def convert(lines):
    length = length_buckets.padded_length(
      max(lengths[i] for i in lines), prompt_length
    )
    converter = feature_converters.Converter(
      kinds.PROMPTS, length, truncate_prompt=truncate_prompt
    )
    batch = converter(
      [converter.cut({'inputs': prompts[i]}) for i in fill(lines)]
    )
    batch['line'] = np.asarray(fill(lines), np.int32)
    return batch

  batches = images.attach(
    map(convert, parts),
    ([image_rows[i] for i in fill(lines)] for lines in parts),
    image_spec,
  )
  for lines, batch in zip(parts, batches, strict=True):
    tokens, mask = decoder(batch)
    for row, line in enumerate(lines):
      responses[line] = [
        _without_eos(some_tokens[some_mask])
        for some_tokens, some_mask in zip(tokens[row], mask[row], strict=True)
      ]
    done += len(lines)
    logging.log_every_n_seconds(
      logging.INFO,
      'Answered %d of %d prompts.',
      *(_LOG_SECONDS, done, len(prompts)),
    )
  return responses


def decoding_config(
  max_length: int | None,
  temperature: float | None,
  top_k: int | None,
  top_p: float | None,
  num_beams: int | None,
  num_samples: int,
) -> Config:
  """Returns the decoding configuration of the flags.

  Args:
    max_length: see `generate`; None gives length 1.
    temperature: see `generate`.
    top_k: see `generate`.
    top_p: see `generate`.
    num_beams: see `generate`.
    num_samples: see `generate`.

  Raises:
    ConfigError: the flags exclude each other.
  """
  length = max_length or 1
  if num_beams is None:
    if temperature == 0 and num_samples > 1:
      raise errors.ConfigError(
        f'--temperature=0 gives the same response {num_samples} times; leave '
        'out --num_samples, or give a temperature above 0.'
      )
    return sampler.SamplingConfig(
      max_length=length,
      temperature=1.0 if temperature is None else temperature,
      top_k=top_k,
      top_p=1.0 if top_p is None else top_p,
      num_samples=num_samples,
    )
  for flag, is_given in (
    ('temperature', bool(temperature)),
    ('top_k', top_k is not None),
    ('top_p', top_p is not None),
    ('num_samples', num_samples > 1),
  ):
    if is_given:
      raise errors.ConfigError(
        '--num_beams searches for the likeliest response and does not sample, '
        f'so --{flag} has no effect; leave one of the two out.'
      )
  return beam.BeamConfig(num_beams=num_beams, max_length=length)


def _make_bound(
  config: t5_config.T5Config, responses: int, image_tokens: int
) -> batch_memory.Bound:
  def bound(rows, tensor, prompt_length, max_length):
    return activation_bytes.decoding_bytes(
      config,
      batch=rows,
      responses=responses,
      prompt_length=image_tokens + prompt_length,
      max_length=max_length,
      tensor=tensor,
    )

  return bound


def _longest(
  path: str, lengths: Sequence[int], limit: int | None, max_length: int
) -> list[batch_memory.Length]:
  """Returns the lengths of the batch with the longest prompts."""
  if not lengths:
    return []
  return [
    batch_memory.line_length(
      'prompt',
      path,
      dict(enumerate(lengths)),
      limit,
      length_buckets.padded_length(max(lengths), limit),
      '--prompt_length={} (cuts longer prompts)',
    ),
    batch_memory.Length(
      max_length,
      f'Responses have up to {max_length:,} tokens (--max_length)',
      '--max_length={}',
    ),
  ]


def _load_decoder(
  checkpoint: str,
  mesh: partitioning.LogicalMesh,
  base_checkpoint: str | None,
  config: Config,
  max_length: int | None,
  seed: int,
) -> tuple[Decoder, Config, loaded_model.LoadedModel]:
  """Loads a language model, and makes a function that answers prompts.

  Args:
    checkpoint: path of the model.
    mesh: the mesh.
    base_checkpoint: path of its base, if it is not where the adapter records
      it.
    config: decoding configuration, except for its length.
    max_length: longest response; None for the length of the training.
    seed: seed of the sampling.

  Returns:
    A compiled function that answers batches of prompts, its configuration, and
    the model without its weights.
  """
  loaded = loading.load(checkpoint, mesh, base_checkpoint)
  if loaded.is_reward_model:
    raise errors.CheckpointError(
      f'{checkpoint} is a reward model, which scores text and cannot write '
      'it; give a language model, such as an SFT or a policy checkpoint.'
    )
  length = max_length or loaded.lengths.get('targets', MAX_LENGTH)
  config = dataclasses.replace(config, max_length=length)
  decoder = make_decoder(loaded, config, seed, mesh)
  return decoder, config, loaded.without_weights()


def make_decoder(
  loaded: loaded_model.LoadedModel,
  config: Config,
  seed: int,
  mesh: partitioning.LogicalMesh,
) -> Decoder:
  """Returns a compiled function that answers batches of prompts.

  Args:
    loaded: a language model.
    config: decoding configuration.
    seed: seed of the sampling.
    mesh: the mesh, on which batches are put.
  """
  model, variables = placed.place(loaded, mesh)

  def function(variables, batch):
    prompts = prompts_lib.of_batch(batch)
    if isinstance(config, beam.BeamConfig):
      samples, _ = beam.beam_search(model, variables, prompts, config)
    else:
      fold_each = jax.vmap(jax.random.fold_in, (None, 0))
      keys = fold_each(jax.random.key(seed), batch['line'])
      samples = sampler.sample(model, variables, prompts, keys, config)
    return samples.tokens, samples.mask

  compiled = compiled_step.CompiledStep(
    function,
    mesh,
    name='generation',
    out_shardings=partitioning.batch_sharding(mesh),
  )

  def decoder(batch):
    batch = placement.put_batch(batch, mesh)
    tokens, mask = compiled(variables, batch)
    return placement.to_host(tokens), placement.to_host(mask)

  return decoder


def _without_eos(tokens: np.ndarray) -> np.ndarray:
  ends_with_eos = tokens.size and tokens[-1] == feature_converters.EOS_ID
  return tokens[:-1] if ends_with_eos else tokens

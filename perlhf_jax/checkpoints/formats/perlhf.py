"""Our own checkpoints, which say themselves what they are."""

import dataclasses

from etils import epath

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.models import tuned_params
from perlhf_jax.training import layer_layout
from perlhf_jax.training import step_files


class Perlhf(format_lib.ModelFormat):
  """MODEL_DIR (its newest step), or one of its steps."""

  name = 'perlhf'
  title = 'a MODEL_DIR or one of its checkpoints/<step> folders'

  def recognises(self, path):
    """See `format`."""
    return step_files.find_step(path) is not None

  def peek(self, path):
    """See `format`."""
    step = step_files.find_step(path)
    metadata = run_metadata.from_json(step_files.read_metadata(step), str(step))
    return loaded_model.LoadedModel(
      config=metadata.model,
      vocabulary=metadata.vocabulary,
      path=str(step),
      source=self.title,
      lora_config=metadata.lora,
      kind=metadata.kind,
      metadata=metadata,
      base=metadata.base,
    )

  def load(self, path, mesh):
    """See `format`."""
    peeked = self.peek(path)
    metadata, config = peeked.metadata, peeked.config
    is_lora = metadata.tuning == 'lora'
    places, _ = tuned_params.split(
      loaded_model.params_shardings(config, mesh), config, lora=is_lora
    )
    trainable = step_files.read_trainable(
      epath.Path(peeked.path),
      # The value model is of use to training only.
      role='policy' if peeked.kind == run_metadata.POLICY else None,
      params_shardings=places,
    )
    params = trainable.get('params', {})
    trained = {'heads': trainable.get('heads', {})}
    if is_lora:
      lora = trainable['lora']
      trained['lora'] = layer_layout.to_layout(lora, scan_layers=False)
      trained['tuned'] = layer_layout.to_layout(params, scan_layers=False)
    else:
      trained['params'] = params
    return dataclasses.replace(peeked, **trained)

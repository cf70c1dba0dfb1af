"""T5X restores what we save: every weight, and the logits.

    python tests/oracles/t5x/restore.py

Needs T5X and this library; see README.md. For each model of `goldens.py`, our
`interop.t5x` loads T5X's legacy checkpoint and saves it again, in float32 and
in bfloat16. T5X's two loaders read that: `load_t5x_checkpoint`, which needs no
model, and the one of `t5x.infer`, with T5X's network.
"""

import json
import tempfile

import goldens
import jax
import jax.numpy as jnp
import numpy as np
from t5x import checkpoints
from t5x import partitioning
from t5x import utils

from perlhf_jax.core import tree_paths
from perlhf_jax.interop import t5x

STEP = 12


def main():
  """Prints, for each model and dtype, the largest differences."""
  partitioner = partitioning.PjitPartitioner(
    num_partitions=1,
    logical_axis_rules=partitioning.standard_logical_axis_rules(),
  )
  for name, (network, settings, _, _, _) in goldens.MODELS.items():
    source = goldens.GOLDEN / f't5x_legacy_{name}'
    original = checkpoints.load_t5x_checkpoint(
      str(source / f'checkpoint_{goldens.STEP}')
    )['target']
    config = t5x.load_config(source)
    params = t5x.load_params(source, config)
    if config.relpos_bias_per_layer:
      # What we save of such a model is for this network.
      settings = settings | {'scan_layers': True}
    model, start = goldens.initializer(network, settings, False, partitioner)
    with np.load(goldens.GOLDEN / f't5x_{name}.npz') as golden:
      golden = dict(golden)
    for dtype in ('float32', 'bfloat16'):
      with tempfile.TemporaryDirectory() as folder:
        step = t5x.save(params, config, folder, STEP, dtype=dtype)
        free = checkpoints.load_t5x_checkpoint(str(step))
        restored, _ = utils.create_checkpoint_manager_and_restore(
          start,
          partitioner,
          utils.RestoreCheckpointConfig(
            path=str(step), mode='specific', strict=False
          ),
          str(step),
          None,
          use_orbax=True,
        )
      assert free['state']['step'] == int(restored.step) == STEP
      flat = tree_paths.flatten(free['target'])
      for path, leaf in tree_paths.flatten(restored.params).items():
        assert leaf.dtype == flat[path].dtype == jnp.dtype(dtype), path
        np.testing.assert_array_equal(leaf, flat[path], err_msg=path)
      before = tree_paths.flatten(original)
      if set(before) == set(flat):
        for path, leaf in before.items():
          np.testing.assert_array_equal(
            np.asarray(flat[path], np.float32),
            np.asarray(leaf, np.float32)
            .astype(jnp.dtype(dtype))
            .astype(np.float32),
            err_msg=path,
          )
      targets = golden['target_tokens']
      logits = model._compute_logits(
        jax.tree.map(lambda x: x.astype(jnp.float32), restored.params),
        {
          'encoder_input_tokens': golden['encoder_tokens'],
          'decoder_input_tokens': np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
          'decoder_target_tokens': targets,
        },
      )
      difference = np.abs(np.asarray(logits) - golden['logits'])[targets > 0]
      print(
        json.dumps(
          {
            'model': name,
            'dtype': dtype,
            'tensors': len(flat),
            'same_names_as_t5x_wrote': set(before) == set(flat),
            'max_logit_difference': float(difference.max()),
          }
        ),
        flush=True,
      )
      if dtype == 'float32':
        assert difference.max() < 1e-5


if __name__ == '__main__':
  main()

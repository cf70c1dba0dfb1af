"""A format of a stranger's, registered in one line, is as good as ours."""

import dataclasses
import json
import pathlib

import flax
import jax
import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loaded_model
from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints.formats import format as format_lib
from perlhf_jax.checkpoints.formats import registry
from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.core import tree_paths
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf
from perlhf_jax.models import encoder_decoder
from perlhf_jax.models import lora as lora_lib
from perlhf_jax.models import t5_config
from perlhf_jax.training import partitioning

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/hf_t5_v1_1'
_LORA = lora_lib.LoraConfig(rank=2, alpha=4.0)
_ROWS = [{'prompt': 'todo: gym', 'response': 'gym'}]


class Npz(format_lib.WeightsFormat, format_lib.WritableFormat):
  """A folder of `config.txt` and `weights.npz`."""

  name = 'npz'
  title = 'a folder with weights.npz'

  def recognises(self, path):
    return (pathlib.Path(path) / 'weights.npz').exists()

  def load_config(self, path):
    fields = json.loads((pathlib.Path(path) / 'config.txt').read_text())
    return t5_config.T5Config(**fields)

  def load_params(self, path, config, put):
    with np.load(pathlib.Path(path) / 'weights.npz') as arrays:
      return tree_paths.unflatten(
        {name: put(name, arrays[name]) for name in arrays}
      )

  def load_vocabulary(self, path):
    return vocabularies.byte_vocabulary()

  def write(self, loaded, target, options):
    folder = pathlib.Path(target)
    folder.mkdir()
    fields = json.dumps(dataclasses.asdict(loaded.config))
    (folder / 'config.txt').write_text(fields)
    np.savez(folder / 'weights.npz', **tree_paths.flatten(loaded.params))


@pytest.fixture
def source(tmp_path, monkeypatch):
  """The golden T5 in that format, which is known."""
  monkeypatch.setattr(registry, '_formats', list(registry._formats))
  registry.register(Npz())
  folder = tmp_path / 'npz'
  folder.mkdir()
  config = hf.load_config(_GOLDEN)
  fields = json.dumps(dataclasses.asdict(config))
  (folder / 'config.txt').write_text(fields)
  params = hf.load_params(_GOLDEN, config)
  np.savez(folder / 'weights.npz', **tree_paths.flatten(params))
  return folder


def test_it_is_loaded_as_any_other(source):
  mesh = partitioning.make_mesh()
  loaded = loading.load(str(source), mesh)
  wanted = loading.load(str(_GOLDEN), mesh)
  assert loaded.fingerprint == wanted.fingerprint
  assert loaded.config == wanted.config
  assert loaded.vocabulary == vocabularies.byte_vocabulary()
  assert str(loaded) == str(loading.peek(str(source))) == Npz.title
  jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted.params)


def test_commands_take_it(source, tmp_path, capsys):
  no_model = ('--gin.MODEL=None', '--gin.VOCABULARY=None')
  adapter = tmp_path / 'sft'
  arguments = runs.arguments(
    *('train_sft', 'attention', adapter, 'demo_sft', *no_model),
    start=source,
    steps=2,
  )
  assert main.run([*arguments, '--check']) == 0
  assert f'{source} is {Npz.title}' in capsys.readouterr().out
  assert main.run(arguments) == 0
  # The adapter is found on it, and both can be scored with.
  scores = [
    runs.score(each, _ROWS, tmp_path)[0]['logprob']
    for each in (source, adapter)
  ]
  assert np.isfinite(scores).all()
  assert scores[0] != scores[1]


def test_convert_reads_and_writes_it(source, tmp_path):
  for first, last, to in (
    (source, tmp_path / 'hf', 'hf'),
    (tmp_path / 'hf', tmp_path / 'again', 'npz'),
  ):
    flags = (f'--source={first}', f'--target={last}', f'--to={to}')
    assert main.run(['convert', *flags]) == 0
  mesh = partitioning.make_mesh()
  first, last = (
    loading.load(str(path), mesh) for path in (source, tmp_path / 'again')
  )
  assert last.fingerprint == first.fingerprint


class NpzAdapter(format_lib.AdapterFormat):
  """Adapters in `adapter.npz`, beside `base.txt` with the path of the model."""

  name = 'npz_adapter'
  title = 'a folder with adapter.npz'

  def recognises(self, path):
    return (pathlib.Path(path) / 'adapter.npz').exists()

  def peek(self, path):
    base = (pathlib.Path(path) / 'base.txt').read_text()
    return loaded_model.LoadedModel(
      config=None,
      path=path,
      source=self.title,
      base={'path': base},
    )

  def on_base(self, peeked, base):
    return dataclasses.replace(
      peeked,
      config=base.config,
      vocabulary=base.vocabulary,
      lora_config=_LORA,
    )

  def load(self, peeked, mesh):
    with np.load(pathlib.Path(peeked.path) / 'adapter.npz') as arrays:
      lora = tree_paths.unflatten(dict(arrays))
    return dataclasses.replace(peeked, lora=lora)


def test_adapters_that_do_not_know_their_model(source, tmp_path):
  registry.register(NpzAdapter())
  config = hf.load_config(_GOLDEN)
  adapters = lora_lib.resolve(_LORA, encoder_decoder.dense_module_paths(config))
  model = encoder_decoder.make_model(config, adapters)

  def init():
    return encoder_decoder.init_variables(model, jax.random.key(0))

  rng = np.random.default_rng(0)
  lora = {
    path: rng.normal(0, 0.1, leaf.shape).astype(np.float32)
    for path, leaf in tree_paths.flatten(
      flax.core.meta.unbox(jax.eval_shape(init)['lora'])
    ).items()
  }
  folder = tmp_path / 'adapter'
  folder.mkdir()
  np.savez(folder / 'adapter.npz', **lora)
  (folder / 'base.txt').write_text(str(source))
  path, mesh = str(folder), partitioning.make_mesh()
  peeked, loaded = loading.peek(path), loading.load(path, mesh)
  base = loading.load(str(source), mesh)
  assert peeked.config == loaded.config == base.config
  assert loaded.vocabulary == base.vocabulary
  assert loaded.backbone_fingerprint == base.fingerprint != loaded.fingerprint
  # It scores with W + A·B·scale, as the model that is merged from it does.
  merged = loading.merged(loaded, mesh).params['decoder']['layers_0']
  kernel = merged['self_attention']['query']['kernel']
  name = 'decoder/layers_0/self_attention/query/'
  a, b = lora[name + 'lora/lora_a'], lora[name + 'lora/lora_b']
  wanted = tree_paths.flatten(base.params)[name + 'kernel']
  wanted = wanted + (a @ b.reshape(2, -1)).reshape(wanted.shape) * 2.0
  np.testing.assert_allclose(kernel, wanted, atol=1e-5)
  before, after = (
    runs.score(each, _ROWS, tmp_path)[0]['logprob'] for each in (source, folder)
  )
  assert np.isfinite(after) and abs(after - before) > 1e-3
  source.rename(tmp_path / 'moved')
  with pytest.raises(errors.CheckpointError, match='--base_checkpoint=DIR'):
    loading.load(path, mesh)
  moved = loading.load(path, mesh, str(tmp_path / 'moved'))
  assert moved.fingerprint == loaded.fingerprint


def test_a_name_is_taken_once(source):
  with pytest.raises(errors.ConfigError, match="'npz' is registered already"):
    registry.register(Npz())


@pytest.mark.parametrize(
  ('kind', 'wanted'),
  [
    (
      format_lib.ModelFormat,
      r'format \(perlhf, peft, hf, pali, t5x\)\. Give a MODEL_DIR or',
    ),
    (format_lib.VitFormat, r'format \(siglip\)\. Give a Hugging Face SigLIP'),
  ],
)
def test_what_no_format_recognises_is_an_error(kind, wanted, tmp_path):
  with pytest.raises(errors.CheckpointError, match=wanted):
    registry.find(str(tmp_path), kind)

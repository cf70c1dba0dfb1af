"""What SECURITY.md says of data: nothing in it is run."""

import base64
import json
import os
import pickle
import shutil
import sys

import pytest
import runs
import tensorflow as tf
import tfrecord_bytes
import tiny_step

from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.data import images
from perlhf_jax.data import json_rows
from perlhf_jax.data import tfrecord_rows
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import t5x
from perlhf_jax.training import partitioning

_EVIL = 'perlhf_evil'
_RUNS = {
  'os.exec',
  'os.posix_spawn',
  'os.spawn',
  'os.system',
  'subprocess.Popen',
}


class _Bomb:
  def __reduce__(self):
    return os.system, ('touch /tmp/perlhf_evil_ran',)


_PICKLE = pickle.dumps(_Bomb())


class _Watch:
  """Notes what is run while it watches; an audit hook is never removed."""

  def __init__(self):
    self.seen = []
    self.folder = None
    sys.addaudithook(self._note)

  def _note(self, event, args):
    if self.folder is None:
      return
    if event in _RUNS or event.startswith('pickle.'):
      self.seen.append((event, args))
    elif event == 'import' and _EVIL in str(args[0]):
      self.seen.append((event, args))
    elif event == 'exec':
      name = getattr(args[0], 'co_filename', '')
      # Dataclasses and the like make code of strings.
      if str(self.folder) in name or _EVIL in name:
        self.seen.append((event, name))
    elif event == 'ctypes.dlopen' and str(self.folder) in str(args[0]):
      self.seen.append((event, args))


@pytest.fixture(scope='session')
def watch():
  return _Watch()


@pytest.fixture
def evil(tmp_path, monkeypatch, watch):
  """A folder of code that must not run, on the path and all around."""
  for name in (_EVIL, 'modeling_evil', 'tokenizer', 'tokenization_evil'):
    (tmp_path / f'{name}.py').write_text('raise AssertionError("it ran")\n')
  monkeypatch.syspath_prepend(tmp_path)
  watch.seen.clear()
  watch.folder = tmp_path
  yield tmp_path
  watch.folder = None
  assert not watch.seen
  assert _EVIL not in sys.modules
  assert not os.path.exists('/tmp/perlhf_evil_ran')


def _around(folder, weights='pytorch_model.bin'):
  """Puts pickles and modules where loaders of others look for them."""
  for name in (
    *(weights, 'training_args.bin', 'scheduler.pt'),
    *('treedef', 'data.pkl', 'model.pkl', 'optimizer.pt', '_PICKLE'),
  ):
    (folder / name).write_bytes(_PICKLE)
  for name in ('modeling_evil.py', 'tokenization_evil.py', f'{_EVIL}.py'):
    (folder / name).write_text('raise AssertionError("it ran")\n')


_AUTO_MAP = {
  'auto_map': {'AutoModel': 'modeling_evil.Evil', 'AutoConfig': f'{_EVIL}.C'},
  'trust_remote_code': True,
  '__reduce__': [f'{_EVIL}.f', []],
  'py/object': f'{_EVIL}.Evil',
  '_target_': f'{_EVIL}.f',
}


def _load(path):
  return loading.load(str(path), partitioning.make_mesh())


def test_the_hook_sees_what_is_run(watch, tmp_path, monkeypatch):
  (tmp_path / f'{_EVIL}_seen.py').write_text('x = 1\n')
  monkeypatch.syspath_prepend(tmp_path)
  watch.folder = tmp_path
  pickle.loads(pickle.dumps(tmp_path))
  __import__(f'{_EVIL}_seen')
  os.system('true')
  watch.folder = None
  events = {event for event, _ in watch.seen}
  assert {'pickle.find_class', 'import', 'exec', 'os.system'} <= events
  watch.seen.clear()


def test_a_checkpoint_of_ours(evil, capsys):
  step = tiny_step.write(evil / 'sft')
  for folder in evil / 'sft', step, step / 'state', step / 'metadata':
    _around(folder)
  (step / '_CHECKPOINT_METADATA').write_text(
    json.dumps({'item_handlers': {'state': f'{_EVIL}.Handler'}, **_AUTO_MAP})
  )
  index = json.loads((step / 'state/_METADATA').read_text())
  for entry in index['tree_metadata'].values():
    entry['value_metadata'] |= _AUTO_MAP
  index['custom_metadata'] = _AUTO_MAP
  (step / 'state/_METADATA').write_text(json.dumps(index))
  metadata = step / 'metadata/metadata'
  raw = json.loads(metadata.read_text())
  raw |= {'module': _EVIL, 'task': 'evil_sft', 'made_of': f'{_EVIL}.f()'}
  raw['versions'] = {'jax': f'{_EVIL}.f()'}
  metadata.write_text(json.dumps(raw))
  tiny_step.seal(step)
  assert _load(evil / 'sft').params is not None
  assert main.run(['inspect', f'--checkpoint={evil / "sft"}']) == 0
  assert main.run(['evaluate', f'--checkpoint={evil / "sft"}']) == 2
  assert f'MIXTURE_OR_TASK_MODULE="\'{_EVIL}\'"' in capsys.readouterr().err
  with pytest.raises(errors.CheckpointError):
    run_metadata.from_json({**raw, 'vocabulary': _AUTO_MAP}, 'STEP')
  # gin syntax in it is text.
  metadata.write_text(json.dumps({**raw, 'task': f'@{_EVIL}.f()'}))
  tiny_step.seal(step)
  assert main.run(['inspect', f'--checkpoint={evil / "sft"}']) == 0


def test_directories_of_others(evil, capsys):
  tiny_step.write(evil / 'sft')
  assert runs.convert(evil / 'sft', evil / 'hf', 'hf') == 0
  _around(evil / 'hf')
  for name in 'config.json', 'tokenizer_config.json':
    raw = json.loads((evil / 'hf' / name).read_text())
    (evil / 'hf' / name).write_text(json.dumps({**raw, **_AUTO_MAP}))
  assert _load(evil / 'hf').params is not None
  (evil / 'hf/model.safetensors').write_bytes(_PICKLE)
  with pytest.raises(errors.CheckpointError, match='cannot be read as safeten'):
    _load(evil / 'hf')
  (evil / 'hf/model.safetensors').unlink()
  with pytest.raises(errors.CheckpointError, match='only as pytorch_mod'):
    _load(evil / 'hf')
  adapter = evil / 'adapter'
  adapter.mkdir()
  _around(adapter, 'adapter_model.bin')
  raw = {
    'peft_type': 'LORA',
    'base_model_name_or_path': str(evil / 'hf'),
    'target_modules': ['q'],
    'auto_mapping': {'base_model_class': 'Evil', 'parent_library': _EVIL},
  }
  (adapter / 'adapter_config.json').write_text(json.dumps(raw))
  (evil / 'sft/checkpoints').rename(evil / 'checkpoints')
  with pytest.raises(errors.CheckpointError, match=r'adapter_model\.bin, '):
    loading.load(
      str(adapter), partitioning.make_mesh(), str(evil / 'checkpoints/0')
    )
  folder = evil / 'checkpoint_3'
  folder.mkdir()
  (folder / 'checkpoint').write_bytes(_PICKLE)
  with pytest.raises(errors.CheckpointError, match='cannot be read as msgpack'):
    t5x.load_config(folder)


def test_vocabularies(evil):
  path = evil / 'spiece.model'
  path.write_bytes(_PICKLE)
  with pytest.raises(errors.ConfigError, match='SentencePiece model'):
    vocabularies.sentencepiece_vocabulary(str(path))
  encoded = base64.b64encode(_PICKLE).decode()
  with pytest.raises(errors.ConfigError, match='SentencePiece model'):
    vocabularies.from_dict(
      {'kind': 'sentencepiece', 'extra_ids': 0, 'model_base64': encoded}
    )
  raw = {'tokenizer_class': f'{_EVIL}.Evil', **_AUTO_MAP}
  (evil / 'tokenizer_config.json').write_text(json.dumps(raw))
  with pytest.raises(errors.ConfigError):
    vocabularies.load_from_hf_directory(str(evil))


def test_data(evil):
  rows = evil / 'rows.jsonl'
  rows.write_bytes(json.dumps(_AUTO_MAP).encode() + b'\n' + _PICKLE)
  first, *others = json_rows.read(str(rows))
  assert first.record == _AUTO_MAP
  assert others and all(row.problem for row in others)
  records = evil / 'records'
  example = tf.train.Example()
  example.features.feature['a'].bytes_list.value.append(_PICKLE)
  records.write_bytes(
    tfrecord_bytes.record(_PICKLE)
    + tfrecord_bytes.record(example.SerializeToString())
  )
  bad, good = tfrecord_rows.read(str(records))
  assert bad.problem and good.record == {'a': [_PICKLE]}
  assert 'cannot be decoded' in images.find_problem(_PICKLE)
  shutil.copy(rows, evil / 'image.png')
  assert 'cannot be decoded' in images.find_problem(str(evil / 'image.png'))

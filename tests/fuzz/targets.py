"""Parsers of files that may come from anybody, and a good file for each.

A parser takes the content of a file. It may raise a `UserError`, and nothing
else; `tasks` make rows with a problem of bad records.
"""

import base64
from collections.abc import Callable
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import struct
import tempfile

from etils import epath
from flax import serialization
import numpy as np
import safetensors.numpy
import seqio
import tensorflow as tf
import tfrecord_bytes
import tiny_metadata
import tiny_models
import tiny_pali
import tiny_pieces

from perlhf_jax.checkpoints import run_changes
from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.core import errors
from perlhf_jax.core import gin_text
from perlhf_jax.core import strict_json
from perlhf_jax.data import image_headers
from perlhf_jax.data import images
from perlhf_jax.data import json_documents
from perlhf_jax.data import json_rows
from perlhf_jax.data import task_modules
from perlhf_jax.data import tfrecord_rows
from perlhf_jax.data import vocabularies
from perlhf_jax.interop import hf
from perlhf_jax.interop import hf_config
from perlhf_jax.interop import peft
from perlhf_jax.interop import peft_config
from perlhf_jax.interop import safetensors_files
from perlhf_jax.interop import siglip
from perlhf_jax.interop import t5x_layouts
from perlhf_jax.models import lora
from perlhf_jax.models import vit_config
from perlhf_jax.stages import line_files
from perlhf_jax.training import stored_arrays
from tests.tasks import make_fixtures


@dataclasses.dataclass(frozen=True)
class Target:
  """A parser.

  Attributes:
    seeds: content of good files.
    parse: takes the content of a file.
  """

  seeds: tuple[bytes, ...]
  parse: Callable[[bytes], None]


def run(target: Target, data: bytes) -> bool:
  """Parses a file; returns whether it was refused with a clean error."""
  try:
    target.parse(data)
  except errors.UserError as error:
    assert len(str(error)) < 20_000, 'the message holds the file'
    return True
  return False


@functools.cache
def _folder() -> pathlib.Path:
  """A folder in memory, if there is one, for all files of this process."""
  shared = '/dev/shm'
  place = shared if os.access(shared, os.W_OK) else None
  return pathlib.Path(tempfile.mkdtemp(prefix='perlhf_fuzz', dir=place))


def _written(name: str, data: bytes) -> str:
  path = _folder() / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return str(path)


def _json(value) -> bytes:
  return json.dumps(value).encode()


def _lines(*values) -> bytes:
  return b'\n'.join(map(_json, values)) + b'\n'


def _reads_rows(name: str, read) -> Callable[[bytes], None]:
  return lambda data: list(read(_written(name, data)))


def _reads_task(name: str, *files: str) -> Callable[[bytes], None]:
  """Reads all rows of a task of whose files the content is divided by NULs."""
  folder = f'data_{name}'

  def parse(data):
    task_modules.import_tasks()
    parts = data.rsplit(b'\0\0\0', len(files) - 1)
    for index, file in enumerate(files):
      part = parts[index] if index < len(parts) else b''
      _written(f'{folder}/{file}', part)
    before = os.environ.get('PERLHF_DATA_DIR')
    os.environ['PERLHF_DATA_DIR'] = str(_folder() / folder)
    try:
      for row in seqio.TaskRegistry.get(name).source.rows('train'):
        assert isinstance(row['problem'], str)
    finally:
      del os.environ['PERLHF_DATA_DIR']
      if before is not None:
        os.environ['PERLHF_DATA_DIR'] = before

  return parse


def _episode() -> bytes:
  return make_fixtures.make_episode(
    7,
    goal='Look for the meeting',
    screens=[make_fixtures.NOTES] * 2,
    actions=[{'action_type': 'click', 'x': 10, 'y': 50}],
    instructions=['Open the search'],
    size=(90, 200),
  )


def _parse_episodes(data: bytes) -> None:
  """Reads a file, and one whose only record has the content."""
  read = _reads_task('android_control_rm', *_EPISODES)
  splits = b'\0\0\0' + _json({'train': [7], 'validation': [], 'test': []})
  read(data + splits)
  read(tfrecord_bytes.record(data) + splits)


_EPISODES = ('android_control-00000-of-00001', 'splits.json')


def _parse_safetensors(data: bytes) -> None:
  path = pathlib.Path(_written('weights/model.safetensors', data))
  reader = safetensors_files.Reader(epath.Path(path.parent))
  for name in reader.shapes():
    reader.read(name)


def _parse_header(data: bytes) -> None:
  """Reads a file whose header is the content, before 32 bytes of numbers."""
  _parse_safetensors(struct.pack('<Q', len(data)) + data + bytes(32))


def _parse_index(data: bytes) -> None:
  path = pathlib.Path(_written(f'index/{safetensors_files.INDEX}', data))
  _written('index/a.safetensors', _SAFETENSORS)
  safetensors_files.Reader(epath.Path(path.parent))


def _parse_metadata(data: bytes) -> None:
  try:
    fields = strict_json.loads(data, allow_nan=True)
  except ValueError:
    return
  metadata = run_metadata.from_json(fields, 'a step')
  # It is another run's, or the same.
  with contextlib.suppress(errors.CheckpointError):
    run_changes.going_on(
      metadata, tiny_metadata.METADATA, epath.Path('run/checkpoints/3')
    )


def _parse_t5(data: bytes) -> None:
  path = _written('t5/config.json', data)
  hf.load_config(os.path.dirname(path))


def _parse_siglip(data: bytes) -> None:
  path = _written('siglip/config.json', data)
  siglip.is_siglip_directory(os.path.dirname(path))
  siglip.load_config(os.path.dirname(path))


def _parse_adapter(data: bytes) -> None:
  path = _written(f'adapter/{peft.CONFIG}', data)
  peft.base_of(os.path.dirname(path))
  raw = safetensors_files.read_json(epath.Path(path))
  peft_config.from_json(raw, tiny_models.CONFIG, path)


def _parse_tokenizer(data: bytes) -> None:
  path = _written('tokenizer/tokenizer_config.json', data)
  vocabularies.load_from_hf_directory(os.path.dirname(path))


def _parse_vocabulary(data: bytes) -> None:
  vocabulary = vocabularies.from_dict(
    {
      'kind': 'sentencepiece',
      'extra_ids': 2,
      'model_base64': base64.b64encode(data).decode(),
    }
  )
  vocabulary.decode(vocabulary.encode('the cat sat'))


def _parse_t5x(data: bytes) -> None:
  path = pathlib.Path(_written('t5x/checkpoint_1/checkpoint', data))
  folder = t5x_layouts.find(path.parent)
  if folder is not None:
    t5x_layouts.read(folder)


def _parse_t5x_metadata(data: bytes) -> None:
  path = pathlib.Path(_written('orbax/checkpoint_1/state/_METADATA', data))
  folder = t5x_layouts.find(path.parents[1])
  if folder is not None:
    t5x_layouts.read(folder)
  stored_arrays.check_index(epath.Path(path.parent))


def _parse_input(data: bytes) -> None:
  line_files.read(
    _written('input.jsonl', data), ('prompt', 'response'), ('response',)
  )


def _parse_binding(data: bytes) -> None:
  try:
    text = data.decode('utf-8')
  except UnicodeDecodeError:
    return
  for each in gin_text.statements(text, f'--gin.{text[:20]}'):
    list(gin_text.macros_in(each.value))


def _parse_image(data: bytes) -> None:
  image_headers.size_of(data)
  images.find_problem(data)


_SAFETENSORS = safetensors.numpy.save(
  {'a': np.ones((2, 3), np.float32), 'b': np.ones(4, np.float16)}
)
_HEADER = _SAFETENSORS[8 : 8 + struct.unpack('<Q', _SAFETENSORS[:8])[0]]
_TURN = {'role': 'user', 'text': 'an espresso'}
_CALL = {'role': 'assistant', 'api': {'order': {'items': [1, 'a']}}}
_TASKMASTER = {
  'context': json.dumps([_TURN, _CALL]),
  'generation': json.dumps({'role': 'assistant', 'text': 'Sure.'}),
  'reward': 1,
}
_ANNOTATION = {
  'question_id': 1,
  'image_id': 9,
  'question_type': 'what',
  'answer_type': 'other',
  'multiple_choice_answer': 'cat',
  'answers': [{'answer': 'cat', 'answer_id': 1}],
}
_OTHER = {**_ANNOTATION, 'question_id': 2, 'multiple_choice_answer': 'dog'}
_QUESTIONS = [
  {'question_id': 1, 'image_id': 9, 'question': 'What is it?'},
  {'question_id': 2, 'image_id': 9, 'question': 'What else?'},
]
_VQA = (
  'v2_mscoco_train2014_annotations.json',
  'v2_OpenEnded_mscoco_train2014_questions.json',
  'v2_mscoco_val2014_annotations.json',
  'v2_OpenEnded_mscoco_val2014_questions.json',
)
_VQA_FILES = b'\0\0\0'.join(
  map(
    _json,
    (
      {'annotations': [_ANNOTATION, _OTHER]},
      {'questions': _QUESTIONS},
      {'annotations': []},
      {'questions': []},
    ),
  )
)
_ROWS = ({'prompt': 'a', 'response': 'b'}, {'prompt': 'c', 'response': ['d']})
_METADATA = run_metadata.to_json(tiny_metadata.METADATA)
_PALI = {
  **_METADATA,
  'model': dataclasses.asdict(tiny_pali.CONFIG),
  'kind': 'reward',
}
_T5 = hf_config.from_t5_config(tiny_models.CONFIG)
_SIGLIP = siglip.from_vit_config(
  vit_config.ViTConfig(
    image_size=8, patch_size=4, width=8, depth=2, mlp_dim=16, num_heads=2
  )
)
_ADAPTER = peft_config.to_json(
  lora.LoraConfig(rank=4),
  [name for name in peft_config.modules(tiny_models.CONFIG) if name[-1] == 'q'],
  tiny_models.CONFIG,
  base='google/flan-t5-small',
)
_PATTERNS = {
  **_ADAPTER,
  'target_modules': r'.*\.(q|v)',
  'rank_pattern': {'q': 2},
  'alpha_pattern': {r'decoder.*\.v': 4},
  'exclude_modules': ['v'],
}
_T5X = serialization.msgpack_serialize(
  {
    'version': 3,
    'optimizer': {
      'target': {
        'a': {
          'driver': 'zarr',
          'kvstore': {'driver': 'file', 'path': 'target.a'},
          'metadata': {'shape': [2, 3]},
        },
        'b': 'PLACEHOLDER://target.b',
        'c': np.ones(2, np.float32),
      }
    },
  }
)
_ORBAX = {
  'tree_metadata': {
    "('target', 'a', 'b')": {
      'key_metadata': [
        {'key': 'target', 'key_type': 2},
        {'key': 'a', 'key_type': 2},
        {'key': 'b', 'key_type': 2},
      ],
      'value_metadata': {'value_type': 'jax.Array', 'skip_deserialize': False},
    }
  },
  'use_zarr3': False,
}
_BINDINGS = (
  *('A = 1', "a/B.c = ('x', 2.5)", "X = {'a': [@f(), %M]}"),
  *('include "x.gin"', 'import os', 'f.g = @h\nM = %gin.REQUIRED'),
)


def targets() -> dict[str, Target]:
  """Returns every parser by its name."""
  texts = ['the cat sat on the mat', 'a dog ran'] * 20
  pieces = tiny_pieces.train(texts, 30)
  png = tf.io.encode_png(np.zeros((3, 4, 3), np.uint8)).numpy()
  jpeg = tf.io.encode_jpeg(np.zeros((3, 4, 3), np.uint8)).numpy()
  orbax = _json(_ORBAX)
  return {
    'json_lines': Target(
      (_lines(*_ROWS), _lines({'a': [1, {'b': None}]})),
      _reads_rows('rows.jsonl', json_rows.read),
    ),
    'json_array': Target(
      (_json([*_ROWS, {'a': {'b': [0.5]}}]),),
      _reads_rows('rows.json', json_rows.read),
    ),
    'json_document': Target(
      (_json({'a': list(_ROWS)}),),
      lambda data: json_documents.load(_written('document.json', data), dict),
    ),
    'taskmaster': Target(
      (_lines(_TASKMASTER, {**_TASKMASTER, 'reward': 0}),),
      _reads_task('taskmaster_coffee_rm', 'coffee.jsonl'),
    ),
    'vqa': Target((_VQA_FILES,), _reads_task('vqav2_rm', *_VQA)),
    'tfrecords': Target(
      (tfrecord_bytes.record(_episode()) * 2, tfrecord_bytes.record(b'')),
      _reads_rows('episodes', tfrecord_rows.read),
    ),
    'episodes': Target((_episode(),), _parse_episodes),
    'safetensors': Target((_SAFETENSORS,), _parse_safetensors),
    'safetensors_header': Target((_HEADER,), _parse_header),
    'safetensors_index': Target(
      (_json({'weight_map': dict.fromkeys('ab', 'a.safetensors')}),),
      _parse_index,
    ),
    'metadata': Target((_json(_METADATA), _json(_PALI)), _parse_metadata),
    't5_config': Target((_json(_T5),), _parse_t5),
    'siglip_config': Target((_json(_SIGLIP),), _parse_siglip),
    'adapter_config': Target(
      (_json(_ADAPTER), _json(_PATTERNS)), _parse_adapter
    ),
    'tokenizer_config': Target(
      (_json({'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': 125}),),
      _parse_tokenizer,
    ),
    'vocabulary': Target(
      (pieces,),
      _parse_vocabulary,
    ),
    't5x_index': Target((_T5X,), _parse_t5x),
    'orbax_index': Target((orbax,), _parse_t5x_metadata),
    'input_lines': Target((_lines(*_ROWS),), _parse_input),
    'gin_binding': Target(tuple(map(str.encode, _BINDINGS)), _parse_binding),
    'image': Target((png, jpeg), _parse_image),
  }

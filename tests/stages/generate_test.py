"""`perlhf generate`, as a user runs it."""

import json
import logging as python_logging
import pathlib

import jax
import numpy as np
import pytest
import runs

from perlhf_jax.checkpoints import loading
from perlhf_jax.checkpoints import placed
from perlhf_jax.cli import main
from perlhf_jax.core import errors
from perlhf_jax.data import vocabularies
from perlhf_jax.models import prompts as prompts_lib
from perlhf_jax.stages import generate
from perlhf_jax.training import partitioning

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_GOLDEN_ROWS = [
  {'prompt': json.loads(line)['prompt']}
  for line in (_GOLDEN / 'hf_t5_texts.jsonl').read_text().splitlines()
]

ROWS = [
  {'prompt': 'todo: gym Rent tea Call mail', 'id': 7},
  {'prompt': 'todo: Lamp'},
  {'prompt': 'todo: Lamp', 'response': 'of before'},
  {'prompt': ''},
  {'prompt': 'é' * 11 + ' ☕'},
]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """Folders `sft`, `lora` (of SFT) and `reward` of tiny runs."""
  root = tmp_path_factory.mktemp('generate')
  sft = root / 'sft'
  runs.train('train_sft', 'none', sft, 'demo_sft', '--gin.LEARNING_RATE=0.01')
  # Fast enough that the adapters change what is likeliest.
  runs.train(
    'train_sft',
    'attention',
    root / 'lora',
    'demo_sft',
    '--gin.LEARNING_RATE=0.3',
    start=sft,
  )
  runs.train(
    'train_reward', 'attention', root / 'reward', 'demo_rm', start=sft, steps=1
  )
  return root


def responses(*args):
  return [row['response'] for row in runs.generate(*args)]


@pytest.fixture(scope='module')
def greedy(root):
  """Greedy responses of `sft` and `lora`."""
  return {
    name: responses(root / name, ROWS, root, '--temperature=0')
    for name in ('sft', 'lora')
  }


@pytest.fixture(scope='module')
def sampled(root):
  """Responses of `sft` without any flags."""
  return responses(root / 'sft', ROWS, root)


def _argmax_loop(checkpoint, prompts, length):
  """Greedy responses by the whole forward pass, one prompt at a time."""
  loaded = loading.load(str(checkpoint), partitioning.make_mesh())
  vocabulary = loaded.vocabulary
  model, variables = placed.place(loaded, partitioning.make_mesh())
  forward = jax.jit(model.apply)
  texts = []
  for prompt in prompts:
    inputs = np.array([[*vocabulary.encode(prompt), 1]], np.int32)
    tokens = []
    while len(tokens) < length and 1 not in tokens:
      shifted = np.zeros((1, length), np.int32)
      shifted[0, 1 : 1 + len(tokens)] = tokens
      logits = forward(variables, prompts_lib.of_tokens(inputs), shifted)
      tokens.append(int(logits[0, len(tokens)].argmax()))
    texts.append(vocabulary.decode([t for t in tokens if t != 1]))
  return texts


@pytest.mark.parametrize(
  ('name', 'batch_size'),
  [('hf_t5_v1_0', 4), ('hf_t5_v1_1', 1), ('hf_t5_gated_tied', 4)],
)
def test_greedy_text_of_a_hugging_face_directory(name, batch_size, tmp_path):
  golden = np.load(_GOLDEN / f'{name}.npz')['greedy_tokens']
  got = responses(
    _GOLDEN / name,
    _GOLDEN_ROWS,
    tmp_path,
    '--temperature=0',
    f'--max_length={golden.shape[1]}',
    f'--batch_size={batch_size}',
  )
  vocabulary = vocabularies.load_from_hf_directory(str(_GOLDEN / name))
  ends = [row.index(1) if 1 in row else None for row in golden.tolist()]
  assert got == [
    vocabulary.decode(row[:end])
    for row, end in zip(golden.tolist(), ends, strict=True)
  ]
  assert any(got)


def test_max_length_of_a_hugging_face_directory(tmp_path):
  empty = _GOLDEN / 'hf_t5_v1_1', [{'prompt': ''}], tmp_path
  # This model never ends its answer.
  assert responses(*empty, '--temperature=0') == ['Y' * 128]


@pytest.mark.parametrize('name', ['sft', 'lora'])
def test_greedy_text_is_that_of_an_argmax_loop(root, greedy, name):
  prompts = [row['prompt'] for row in ROWS]
  # The runs are trained on responses of at most 17 tokens.
  assert greedy[name] == _argmax_loop(root / name, prompts, length=17)


def test_adapters_are_used(greedy):
  assert greedy['lora'] != greedy['sft']


def test_lines_are_kept_with_a_response_added(root, tmp_path):
  written = runs.generate(root / 'sft', ROWS, tmp_path)
  for row, answered in zip(ROWS, written, strict=True):
    assert isinstance(answered['response'], str)
    assert answered == {**row, 'response': answered['response']}
  assert written[2]['response'] != 'of before'


@pytest.mark.parametrize(
  ('name', 'flags'),
  [
    ('sft', ()),
    ('lora', ('--temperature=0.7', '--top_k=50', '--top_p=0.9')),
    ('sft', ('--num_samples=3', '--seed=3')),
    ('lora', ('--num_beams=3',)),
  ],
)
def test_responses_do_not_depend_on_the_batch(root, tmp_path, name, flags):
  whole = responses(root / name, ROWS, tmp_path, *flags)
  small = responses(root / name, ROWS, tmp_path, *flags, '--batch_size=2')
  assert small == whole
  # Nor on the lines that follow, nor on the room that prompts have.
  more = (*flags, '--batch_size=3', '--prompt_length=100')
  assert responses(root / name, ROWS[:4], tmp_path, *more) == whole[:4]


def test_greedy_responses_do_not_depend_on_the_order(root, tmp_path, greedy):
  backwards = responses(
    root / 'sft', ROWS[::-1], tmp_path, '--temperature=0', '--seed=1'
  )
  assert backwards[::-1] == greedy['sft']


def test_the_seed_decides_what_is_sampled(root, tmp_path, sampled):
  defaults = '--seed=0', '--temperature=1', '--top_p=1', '--num_samples=1'
  assert responses(root / 'sft', ROWS, tmp_path, *defaults) == sampled
  other = responses(root / 'sft', ROWS, tmp_path, '--seed=1')
  assert all(a != b for a, b in zip(sampled, other, strict=True))


def test_equal_prompts_on_two_lines_are_sampled_apart(root, tmp_path):
  several = responses(root / 'sft', [ROWS[0]] * 6, tmp_path)
  assert len(set(several)) > 1


def test_several_samples(root, tmp_path, sampled):
  three = responses(root / 'sft', ROWS, tmp_path, '--num_samples=3')
  for text, texts in zip(sampled, three, strict=True):
    assert len(texts) == 3 and texts[0] == text
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
  'flags',
  [['--top_k=1'], ['--top_p=1e-6'], ['--num_beams=1', '--temperature=0']],
)
def test_the_likeliest_token_alone_is_greedy(root, tmp_path, greedy, flags):
  assert responses(root / 'sft', ROWS, tmp_path, *flags) == greedy['sft']


def test_max_length(root, tmp_path, sampled):
  short = responses(root / 'sft', ROWS, tmp_path, '--max_length=4')
  assert short != sampled
  for cut, text in zip(short, sampled, strict=True):
    assert text.startswith(cut)
  assert max(len(text.encode()) for text in short) <= 4


def test_long_prompts_are_cut_with_a_warning(root, tmp_path, caplog):
  # 20 bytes and EOS are left.
  ends = [ROWS[0]['prompt'][-20:], 'x' * 20]
  rows = [{'prompt': 'a' * 60 + ends[0]}, {'prompt': ends[1]}]
  with caplog.at_level(python_logging.WARNING, 'absl'):
    cut = responses(root / 'sft', rows, tmp_path, '--prompt_length=21')
  assert '1 of 2 prompts are longer than 21 tokens and are cut' in caplog.text
  caplog.clear()
  # The limit of the training is 32.
  rows = [{'prompt': prompt} for prompt in (*ends, 'a' * 32)]
  with caplog.at_level(python_logging.WARNING, 'absl'):
    assert responses(root / 'sft', rows, tmp_path)[:2] == cut
  assert '1 of 3 prompts are longer than 32 tokens' in caplog.text


def test_batches_hold_similar_lengths_and_no_empty_rows():
  prompts = [np.full(n, n, np.int32) for n in (40, 3, 17, 5, 90)]
  shapes, lines = [], []

  def decoder(batch):
    shapes.append(batch['prompt_tokens'].shape)
    lines.extend(batch['line'].tolist())
    assert batch['example_mask'].all()
    # Answers with the prompt's length, twice, the second time with EOS.
    length = batch['prompt_mask'].sum(axis=1).astype(np.int32)
    tokens = np.stack([length, np.ones_like(length), 0 * length], axis=-1)
    tokens = np.stack([tokens[:, [0, 2, 2]], tokens], axis=1)
    return tokens, tokens > 0

  answers = generate.decode_prompts(
    prompts,
    decoder,
    batch_size=2,
    prompt_length=80,
    truncate_prompt='keep_end',
  )
  # The longest first: what does not fit ends early.
  assert shapes == [(2, 80), (2, 64), (2, 16)]
  assert lines == [4, 4, 2, 0, 1, 3]
  assert [[a.tolist() for a in several] for several in answers] == [
    [[n], [n]] for n in (40, 3, 17, 5, 80)
  ]


# Bad input.


def _fails(capsys, checkpoint, source, target, *more):
  """Runs a command line that must fail; returns its message."""
  command = ['generate', f'--checkpoint={checkpoint}', f'--input={source}']
  assert main.run([*command, f'--output={target}', *more]) == 2
  message = capsys.readouterr().err
  assert message.count('perlhf: error:') == 1
  assert 'Traceback' not in message
  assert not target.is_file()
  return message


@pytest.mark.parametrize(
  ('lines', 'wanted'),
  [
    (['{"prompt": "a"}', '{"response": "b"}'], ":2 has no string 'prompt'"),
    (['{"prompt": ["a"]}'], ":1 has no string 'prompt'"),
    (['[1]'], ':1 is not a JSON object'),
    (['{"prompt": "a"}', '', '{"prompt": "a"}'], ':2 is not JSON'),
    (['{"prompt": "\\ud83d"}'], ':1 holds half of a surrogate pair'),
  ],
)
def test_bad_lines(tmp_path, capsys, lines, wanted):
  source = tmp_path / 'in.jsonl'
  source.write_text('\n'.join(lines) + '\n')
  # Lines are read before the checkpoint, which can take minutes.
  message = _fails(capsys, 'nowhere', source, tmp_path / 'out.jsonl')
  assert f'in.jsonl{wanted}' in message


@pytest.mark.parametrize(
  ('flags', 'wanted'),
  [
    (['--input=nowhere.jsonl'], ['nowhere.jsonl']),
    (['--output=nowhere/out.jsonl'], ['nowhere', 'make it first']),
    (['--output=.'], ['is a folder']),
    (['--checkpoint=nowhere'], ['nowhere', 'no such folder']),
    (['--temperature=-1'], ['temperature', '-1']),
    (['--temperature=nan'], ['temperature', 'nan']),
    (['--top_k=0'], ['top_k', '0']),
    (['--top_p=0'], ['top_p', '0.0']),
    (['--top_p=1.5'], ['top_p', '1.5']),
    (['--num_samples=0'], ['num_samples']),
    (['--num_beams=0'], ['num_beams']),
    (['--max_length=0'], ['max_length']),
    (['--prompt_length=0'], ['prompt_length']),
    (['--batch_size=0'], ['batch_size']),
    (['--seed=-1'], ['seed', '-1']),
    (['--seed=4294967296'], ['seed', '4294967296']),
    (['--num_samples=2', '--temperature=0'], ['same response 2 times']),
    (['--num_beams=2', '--temperature=0.5'], ['--num_beams', '--temperature']),
    (['--num_beams=2', '--top_k=3'], ['--num_beams', '--top_k']),
    (['--num_beams=2', '--top_p=0.5'], ['--num_beams', '--top_p']),
    (['--num_beams=2', '--num_samples=2'], ['--num_beams', '--num_samples']),
  ],
)
def test_bad_flags(tmp_path, capsys, flags, wanted):
  source = runs.write_rows(tmp_path / 'in.jsonl', ROWS)
  # Of a wrong checkpoint nothing is said before the flags are right.
  message = _fails(capsys, tmp_path, source, tmp_path / 'out.jsonl', *flags)
  for text in wanted:
    assert text in message


def test_a_reward_model_writes_no_text(root, tmp_path, capsys):
  source = runs.write_rows(tmp_path / 'in.jsonl', ROWS)
  message = _fails(capsys, root / 'reward', source, tmp_path / 'out.jsonl')
  assert 'is a reward model' in message and 'language model' in message


def test_a_moved_base(root, tmp_path, greedy):
  moved = tmp_path / 'moved'
  (root / 'sft').rename(moved)
  try:
    with pytest.raises(errors.CheckpointError, match='--base_checkpoint'):
      loading.load(str(root / 'lora'), partitioning.make_mesh())
    flags = f'--base_checkpoint={moved}', '--temperature=0'
    assert responses(root / 'lora', ROWS, tmp_path, *flags) == greedy['lora']
  finally:
    moved.rename(root / 'sft')

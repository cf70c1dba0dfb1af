"""Files of steps and runs that are damaged, and inputs that are."""

import shutil

import cases
import worlds

_WAYS = (
  *('flip', 'flip', 'flip', 'truncate', 'zeros', 'remove', 'foreign'),
  *('swap', 'grow', 'folder'),
)


def step_file(case) -> str:
  """A file of the newest step, of each in turn, is damaged."""
  case.prepare()
  newest = worlds.HALF if case.trains else worlds.LAST
  step = case.model_dir / 'checkpoints' / str(newest)
  files = sorted(path for path in step.rglob('*') if path.is_file())
  file = files[case.number * 7 % len(files)]
  way = _WAYS[case.number % len(_WAYS)]
  case.what = f'{way}: {file.relative_to(case.model_dir)}'
  _damage(file, way, case, files)
  return _after_damage(case, newest)


def whole_step(case) -> str:
  """A step as a whole is not what it should be."""
  case.prepare()
  newest = worlds.HALF if case.trains else worlds.LAST
  root = case.model_dir / 'checkpoints'
  step, older = root / str(newest), root / str(newest - worlds.PERIOD)
  ways = ('emptied', 'an empty one', '²', 'another', 'a part', 'a file', 'hid')
  way = ways[case.number % len(ways)]
  case.what = f'step: {way}'
  if way == 'emptied':
    shutil.rmtree(step)
    step.mkdir()
  elif way == 'an empty one':
    (root / '13').mkdir()
  elif way == '²':
    (root / '²').mkdir()
  elif way == 'another':
    shutil.rmtree(step)
    shutil.copytree(older, step)
  elif way == 'a part':
    part = case.random.choice([p for p in step.iterdir() if p.is_dir()])
    shutil.rmtree(part)
    case.what += f' {part.name} removed'
  elif way == 'a file':
    shutil.rmtree(step)
    step.write_text('not a folder\n')
  else:
    (step / '.nfs0001').write_text('of a network disk\n')
  return _after_damage(case, newest)


def _after_damage(case, newest):
  if case.stage == 'inspect' and case.number % 2:
    outcome = case.run('--verify', codes=(0, 2), names=['Damaged in'])
    if outcome.code:
      return cases.CLEAR
  outcome = case.run(codes=(0,))
  older = newest - worlds.PERIOD
  if not case.trains and f'Step {older} is used' in outcome.err:
    case.compare(outcome, [older])
  else:
    case.compare(outcome)
  return cases.RECOVERED


def named_step(case) -> str:
  """The step that a training starts from, or is rewarded by, is damaged."""
  case.prepare(0)
  short = 'rm' if case.stage == 'train_policy' and case.number % 2 else 'sft'
  case.world.copy(short, case.folder / 'copy')
  step = case.folder / 'copy' / 'checkpoints' / str(worlds.LAST)
  files = sorted(path for path in step.rglob('*') if path.is_file())
  file = files[case.number * 5 % len(files)]
  way = _WAYS[case.number % len(_WAYS)]
  case.what = f'{way}: {file.relative_to(step)} of the {short} it is given'
  _damage(file, way, case, files)
  macro = 'REWARD' if short == 'rm' else 'INITIAL'
  given = f"--gin.{macro}_CHECKPOINT{'' if short == 'rm' else '_PATH'}='{step}'"
  outcome = case.run(given, codes=(0, 2), names=[step])
  if outcome.code:
    return case.recover(cases.CLEAR)
  case.compare(outcome)
  return cases.RECOVERED


def record(case) -> str:
  """A file of records or figures in MODEL_DIR is damaged."""
  is_done = case.random.random() < 0.4
  case.prepare(worlds.LAST if is_done else worlds.HALF)
  # A run that is done looks at no record any more.
  names = [] if is_done else ['metrics.jsonl', 'samples.jsonl']
  names += ['summary.json', 'config.gin']
  names = [name for name in names if (case.model_dir / name).exists()]
  events = [p.name for p in case.model_dir.iterdir() if 'tfevents' in p.name]
  names += [*events[:1], 'lock-elsewhere-1-a.json', 'eval.json']
  name = names[case.number % len(names)]
  file = case.model_dir / name
  ways = ('line of NULs', 'half a line', 'truncate', 'garbage', 'remove')
  way = ways[case.number // 2 % len(ways)]
  if not file.exists():
    way = 'garbage'
  case.what = f'{name}: {way}'
  lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
  index = case.random.randrange(len(lines)) if lines else 0
  if way == 'line of NULs':
    lines[index] = b'\0' * (len(lines[index]) - 1) + b'\n'
  elif way == 'half a line':
    lines[index] = lines[index][: len(lines[index]) // 2] + b'\n'
  elif way == 'truncate':
    lines = lines[:index]
  elif way == 'garbage':
    lines = [case.random.randbytes(100)]
  file.write_bytes(b''.join(lines))
  if way == 'remove':
    file.unlink()
  # Nobody can tell whether the run goes on as it began.
  codes = (0, 2) if name == 'config.gin' else (0,)
  outcome = case.run(codes=codes, names=[file])
  if outcome.code:
    file.unlink(missing_ok=True)
    return case.recover(cases.CLEAR)
  case.compare(outcome)
  return cases.RECOVERED


def lines(case) -> str:
  """A line of what `score` or `generate` reads is damaged."""
  case.prepare()
  file = case.folder / 'lines.jsonl'
  rows = case.world.lines.read_bytes().splitlines(keepends=True)
  index = case.random.randrange(len(rows))
  ways = (
    *(b'\0' * 40 + b'\n', rows[index][:9] + b'\n', b'[1, 2]\n', b'{}\n'),
    *(b'\xff\xfe\n', b'{"prompt": NaN}\n', b'[' * 100_000 + b'\n'),
  )
  rows[index] = ways[case.number % len(ways)]
  case.what = f'line {index + 1}: {rows[index][:20]!r}'
  file.write_bytes(b''.join(rows))
  case.run(codes=(2,), names=[f'{file}:{index + 1}'])
  file.unlink()
  return case.recover(cases.CLEAR)


def rows(case) -> str:
  """The rows of a run are others when it goes on, or damaged."""
  case.prepare()
  data = case.folder / 'data'
  shutil.copytree(case.world.data, data)
  short = worlds.TRAINING[case.stage]
  file = data / ('prompts.jsonl' if short == 'policy' else f'{short}.jsonl')
  names = ['fingerprint', 'data.rows']
  ways = ('other', 'order', 'fewer', 'more', 'NULs', 'half', 'no file')
  way = ways[case.number // 3 % len(ways)]
  index = case.random.randrange(40)
  case.what = f'rows: {way}'
  if way == 'other':
    worlds.change_rows(
      file, lambda r: [*r[:index], r[index - 1], *r[index + 1 :]]
    )
  elif way == 'order':
    worlds.change_rows(file, lambda r: r[::-1])
  elif way == 'fewer':
    worlds.change_rows(file, lambda r: [*r[:index], *r[index + 1 :]])
  elif way == 'more':
    worlds.change_rows(file, lambda r: [*r, r[0]])
  elif way == 'no file':
    file.unlink()
    names = [file.name, data]
  else:
    content = file.read_bytes().splitlines(keepends=True)
    line = content[index]
    content[index] = b'\0' * 30 + b'\n' if way == 'NULs' else line[:9] + b'\n'
    file.write_bytes(b''.join(content))
    names = [file]
  before = _contents(case.model_dir)
  case.run(codes=(2,), names=names, data=data)
  if _contents(case.model_dir) != before:
    raise cases.Failure(cases.SILENT, 'refused, but MODEL_DIR has changed')
  return case.recover(cases.CLEAR)


def _contents(folder):
  return {
    str(path): path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


def _damage(file, way, case, others):
  """Damages a file."""
  content = bytearray(file.read_bytes())
  if way == 'flip' and content:
    content[case.random.randrange(len(content))] ^= 1 << case.random.randrange(
      8
    )
  elif way == 'truncate':
    content = content[: case.random.randrange(max(1, len(content)))]
  elif way == 'zeros':
    content = bytearray(len(content))
  elif way == 'foreign':
    content = bytearray(case.random.randbytes(len(content) or 10))
  elif way == 'swap':
    other = case.random.choice([each for each in others if each != file])
    content = bytearray(other.read_bytes())
    other.write_bytes(file.read_bytes())
  elif way == 'grow' or way == 'flip':
    content += b'\n'
  file.write_bytes(content)
  if way in ('remove', 'folder'):
    file.unlink()
  if way == 'folder':
    file.mkdir()

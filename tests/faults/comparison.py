"""What a command has made, as it is compared with what it should have made."""

import json
import pathlib

from etils import epath
import jax
import metric_records
import numpy as np
import orbax.checkpoint as ocp

_SHOWN = 3
# What the clock decides, or where a checkpoint lies.
_CLOCK = (*metric_records.metric_writer.TIMING, 'seconds')


def leaves(step: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads all leaves of a step, the optimizer's too, by Orbax alone."""
  state = epath.Path(step) / 'state'
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(state).tree
  restored = handler.restore(
    state,
    args=ocp.args.PyTreeRestore(
      restore_args=jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
      )
    ),
  )
  handler.close()
  flat, _ = jax.tree_util.tree_flatten_with_path(restored)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def of_run(model_dir: pathlib.Path, last: int) -> dict[str, object]:
  """Returns what a training command makes: leaves and records, by name."""
  made: dict[str, object] = {
    f'leaf {name}': (leaf.dtype.str, leaf.shape, leaf.tobytes())
    for name, leaf in leaves(model_dir / 'checkpoints' / str(last)).items()
  }
  made['metrics.jsonl'] = metric_records.without_timing(model_dir)
  samples = model_dir / 'samples.jsonl'
  if samples.exists():
    made['samples.jsonl'] = [
      json.loads(line) for line in samples.read_text().splitlines()
    ]
  summary = json.loads((model_dir / 'summary.json').read_text())
  made['steps of summary.json'] = summary['steps']
  return made


def of_folder(folder: pathlib.Path, case: pathlib.Path) -> dict[str, object]:
  """Returns the files of a folder, which lies somewhere in `case`."""
  return {
    str(path.relative_to(folder)): of_text(path.read_bytes(), case)
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def of_text(content: bytes, case: pathlib.Path) -> bytes:
  """Returns a text without the folder in which it was made."""
  return content.replace(str(case).encode(), b'CASE')


def of_figures(file: pathlib.Path, case: pathlib.Path) -> dict[str, object]:
  """Returns the figures of an eval.json, without the clock's."""
  figures = json.loads(of_text(file.read_bytes(), case))
  return {name: v for name, v in figures.items() if name not in _CLOCK}


def difference(made, wanted, said='') -> str | None:
  """Says what differs.

  Args:
    made: of a command that something went wrong with.
    wanted: of one that was left alone.
    said: on stderr. A record may be missing if this names its file.

  Returns:
    Names of what differs; None if nothing does.
  """
  names = [
    name
    for name in {**wanted, **made}
    if not _is_same(name, made.get(name), wanted.get(name), said)
  ]
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more if names else None


def _is_same(name, made, wanted, said) -> bool:
  if made == wanted:
    return True
  if not name.endswith('.jsonl') or not isinstance(made, list) or not wanted:
    return False
  # What was lost before is said, and nothing else is new or in other order.
  rest = iter(wanted)
  is_part = all(any(each == other for other in rest) for each in made)
  return is_part and any(
    name in line and 'WARNING' in line for line in said.splitlines()
  )

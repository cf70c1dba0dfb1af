"""Prints the demo's results, and writes them to OUTPUT_DIR/demo.json."""

import json
import pathlib
import sys

_MEMORY = ('step memory', 'step_memory_bytes', lambda x: f'{x / 2**20:.1f} MiB')
_REWARD_METRICS = (
  ('pairwise accuracy', 'pairwise_accuracy', lambda x: f'{x:.1%}'),
  ('ROC-AUC', 'roc_auc', lambda x: f'{x:.3f}'),
  ('accuracy', 'accuracy', lambda x: f'{x:.1%}'),
)
_REWARD_COLUMNS = (
  *_REWARD_METRICS,
  ('trainable share', 'trainable_fraction', lambda x: f'{x:.2%}'),
  ('examples/s', 'examples_per_second', lambda x: f'{x:.0f}'),
  _MEMORY,
)
_POLICY_COLUMNS = (
  ('gold score (0-100)', 'gold_score', lambda x: f'{x:.1f}'),
  ('KL to SFT (k1, nats)', 'kl_k1', lambda x: f'{x:.2f}'),
  ('win rate against SFT', 'win_rate', lambda x: f'{x:.1%}'),
  ('seconds/step', 'seconds_per_step', lambda x: f'{x:.3f}'),
  _MEMORY,
)
_SAMPLES = 5


def read(path: pathlib.Path) -> dict:
  """Reads a JSON object."""
  return json.loads(path.read_text())


def reward_row(model_dir: pathlib.Path) -> dict[str, float | None]:
  """Returns the results of one reward model."""
  summary, evaluation = (
    read(model_dir / name) for name in ('summary.json', 'eval.json')
  )
  keys = [key for _, key, _ in _REWARD_METRICS if key in evaluation]
  return {
    **{key: evaluation[key] for key in keys},
    'examples_per_second': summary['examples_per_second'],
    'step_memory_bytes': summary['step_memory_bytes'],
    'trainable_fraction': summary['trainable_fraction'],
  }


def policy_row(model_dir: pathlib.Path) -> dict[str, float | None]:
  """Returns the results of one policy."""
  summary, evaluation = (
    read(model_dir / name) for name in ('summary.json', 'eval.json')
  )
  return {
    'gold_score': evaluation['judge_score'],
    'kl_k1': evaluation['kl_k1'],
    'win_rate': evaluation['win_rate'],
    'seconds_per_step': summary['seconds_per_step'],
    'step_memory_bytes': summary['step_memory_bytes'],
  }


def print_table(title: str, rows: dict[str, dict], columns) -> None:
  """Prints results of LoRA and full tuning, their ratio, and those of DPO.

  Args:
    title: what the rows are results of.
    rows: `lora` and `full`, and perhaps `dpo`.
    columns: names and keys of the figures, and how to print each.
  """
  heads = [
    'LoRA',
    'full',
    'LoRA/full',
    *(['DPO, LoRA'] if 'dpo' in rows else []),
  ]
  print(f'\n{title:22}' + ''.join(f'{head:>12}' for head in heads))
  for name, key, show in columns:
    if key not in rows['lora']:
      continue
    values = [rows[tuning][key] for tuning in rows]
    # A summary that was lost and written again does not know every figure.
    shown = ['unknown' if x is None else show(x) for x in values]
    known = None not in values[:2]
    shown.insert(2, f'{values[0] / values[1]:.2f}' if known else '-')
    print(f'{name:22}' + ''.join(f'{x:>12}' for x in shown))


def print_samples(output: pathlib.Path) -> None:
  """Prints responses to the same prompts before and after, with gold scores."""
  sft, lora = (
    read(output / name / 'eval.json')['samples']
    for name in ('sft', 'policy_lora')
  )
  print(f'\n{"test prompt":34}{"SFT":>22}{"LoRA policy":>28}')
  for before, after in list(zip(sft, lora, strict=True))[:_SAMPLES]:
    shown = [
      f'{x["response"]} ({x["judge_score"]:.0f})' for x in (before, after)
    ]
    print(f'{before["prompt"]:34}{shown[0]:>22}{shown[1]:>28}')


def main() -> None:
  """Collects, prints and writes the results."""
  output = pathlib.Path(sys.argv[1])
  tunings = ('lora', 'full')
  reward = {t: reward_row(output / f'reward_{t}') for t in tunings}
  # Only the text demo has pairs, on which DPO trains.
  has_dpo = (output / 'policy_dpo').exists()
  policy = {
    kind: policy_row(output / f'policy_{kind}')
    for kind in (*tunings, *(['dpo'] if has_dpo else []))
  }
  sft = {'gold_score': read(output / 'sft' / 'eval.json')['judge_score']}
  demo = {
    'seconds': int(sys.argv[2]),
    'reward': reward,
    'policy': {'sft': sft, **policy},
  }
  (output / 'demo.json').write_text(json.dumps(demo, indent=2) + '\n')

  print_table('reward model', reward, _REWARD_COLUMNS)
  print_table('policy', policy, _POLICY_COLUMNS)
  print(f'{"  gold score of SFT":22}{sft["gold_score"]:>12.1f}')
  print_samples(output)
  print(f'\n{demo["seconds"]} s in all. Figures: {output / "demo.json"}')


if __name__ == '__main__':
  main()

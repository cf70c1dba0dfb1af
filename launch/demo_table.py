"""Prints what the demo measured, and writes it to OUTPUT_DIR/demo.json."""

import json
import pathlib
import sys

_REWARD_COLUMNS = (
  ('pairwise accuracy', 'pairwise_accuracy', lambda x: f'{x:.1%}'),
  ('trainable share', 'trainable_fraction', lambda x: f'{x:.2%}'),
  ('examples/s', 'examples_per_second', lambda x: f'{x:.0f}'),
  ('step memory', 'step_memory_bytes', lambda x: f'{x / 2**20:.1f} MiB'),
)


def read(path: pathlib.Path) -> dict:
  """Reads a JSON object."""
  return json.loads(path.read_text())


def reward_row(model_dir: pathlib.Path) -> dict[str, float]:
  """Returns the figures of one reward model."""
  summary = read(model_dir / 'summary.json')
  return {
    'pairwise_accuracy': read(model_dir / 'eval.json')['pairwise_accuracy'],
    'examples_per_second': summary['examples_per_second'],
    'step_memory_bytes': summary['step_memory_bytes'],
    'trainable_fraction': summary['trainable_fraction'],
  }


def main() -> None:
  """Collects, prints and writes."""
  output = pathlib.Path(sys.argv[1])
  reward = {
    tuning: reward_row(output / f'reward_{tuning}')
    for tuning in ('lora', 'full')
  }
  demo = {'seconds': int(sys.argv[2]), 'reward': reward}
  (output / 'demo.json').write_text(json.dumps(demo, indent=2) + '\n')

  lora, full = reward['lora'], reward['full']
  print(f'\n{"reward model":20}{"LoRA":>12}{"full":>12}{"LoRA/full":>12}')
  for title, key, show in _REWARD_COLUMNS:
    ratio = lora[key] / full[key]
    print(f'{title:20}{show(lora[key]):>12}{show(full[key]):>12}{ratio:>12.2f}')
  print(f'\n{demo["seconds"]} s in all. Figures: {output / "demo.json"}')


if __name__ == '__main__':
  main()

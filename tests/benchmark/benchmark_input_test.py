import json

from perlhf_jax.cli import main


def test_figures(tmp_path, capsys):
  output = tmp_path / 'figures.json'
  command = [
    'benchmark_input',
    '--task=demo_vqa_sft',
    '--image_size=16',
    '--batch_size=8',
    '--num_batches=4',
    '--repeats=3',
    f'--output={output}',
  ]
  assert main.run(command) == 0
  result = json.loads(output.read_text())
  rates = result['all_images_per_second']
  assert {name: len(values) for name, values in rates.items()} == {
    'pipeline': 3,
    'one_by_one': 3,
  }
  assert result['images_per_second'] == sorted(rates['pipeline'])[1]
  assert result['ratio'] == (
    result['images_per_second'] / result['one_by_one_images_per_second']
  )
  assert result['distinct_images'] <= result['examples'] == 100
  printed = capsys.readouterr().out
  assert f'{result["images_per_second"]:,.0f} images/s' in printed

"""Records of a run's metrics.jsonl, as tests compare them."""

import json
import pathlib

from perlhf_jax.training import metric_writer


def read(model_dir):
  """Reads all records of a run."""
  path = pathlib.Path(model_dir) / metric_writer.FILE_NAME
  return [json.loads(line) for line in path.read_text().splitlines()]


def without_timing(model_dir):
  """Reads all records, without the metrics that the clock decides."""
  return [
    {k: v for k, v in record.items() if k not in metric_writer.TIMING}
    for record in read(model_dir)
  ]

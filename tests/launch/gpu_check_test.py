"""`launch/gpu_check.sh`, with a Python that writes down what it is asked."""

import os
import pathlib
import subprocess

import pytest

_SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'gpu_check.sh'
_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-c import torch"*) exit $NO_TORCH ;;
  "-c import jax; print"*) echo "$PLATFORM" ;;
  "-c "*) exit $NO_JAX ;;
  "- "*) cat >/dev/null ;;
  *)
    echo "$*" >>"$CALLS"
    for argument; do
      [[ "$argument" != --output=* ]] || output="${argument#--output=}"
    done
    if [[ "$*" == *"$FAILS"* ]]; then
      echo 'perlhf: error: not enough memory' >&2
      exit 2
    fi
    [[ -z "${output:-}" ]] || echo {} >"$output"
    ;;
esac
"""


@pytest.fixture(name='check')
def _check(tmp_path):
  python = tmp_path / 'python'
  python.write_text(_PYTHON)
  python.chmod(0o755)
  calls = tmp_path / 'calls'
  calls.touch()

  def check(*arguments, **environment):
    result = subprocess.run(
      [_SCRIPT, *arguments],
      env={
        **os.environ,
        'PYTHON': str(python),
        'CALLS': str(calls),
        'PLATFORM': 'gpu',
        'NO_JAX': '0',
        'NO_TORCH': '0',
        'FAILS': 'nothing fails',
        **environment,
      },
      capture_output=True,
      text=True,
      check=False,
    )
    return result, calls.read_text().splitlines()

  return check


def test_both_models_and_the_rival(check, tmp_path):
  result, calls = check(str(tmp_path / 'out'))
  assert result.returncode == 0, result.stderr
  models = ['t5_1_1_xl.gin', 't5_1_1_xxl.gin', '--size=xl', '--size=xxl']
  assert len(calls) == len(models)
  for call, model in zip(calls, models, strict=True):
    assert model in call
  assert "--gin.TUNINGS=('lora', 'full')" in calls[0]
  assert "--gin.TUNINGS=('lora',)" in calls[1]
  assert all('--dtype=bfloat16' in call for call in calls[2:])


def test_what_does_not_fit_is_tried_with_lora_alone(check, tmp_path):
  output = tmp_path / 'out'
  result, calls = check(
    str(output),
    FAILS='t5_1_1_xl.gin --gin_file=gin/rl/reinforce.gin',
    NO_TORCH='1',
  )
  assert result.returncode == 0, result.stderr
  assert 'not enough memory' in result.stdout
  assert [call.split('gin/models/')[1].split('.')[0] for call in calls] == [
    *('t5_1_1_xl', 't5_1_1_xl', 't5_1_1_xxl')
  ]
  assert (output / 'xxl.json').exists()


def test_dry(check, tmp_path):
  result, (benchmark, loop) = check(
    '--dry', str(tmp_path / 'out'), PLATFORM='cpu'
  )
  assert result.returncode == 0, result.stderr
  assert 't5_tiny.gin' in benchmark and '--gin.T5Config.emb_dim=16' in benchmark
  assert '--size=tiny' in loop


@pytest.mark.parametrize(
  ('arguments', 'environment', 'code', 'wanted'),
  [
    ((), {}, 2, 'OUTPUT_DIR'),
    (('--help',), {}, 2, 'OUTPUT_DIR'),
    (('out',), {'NO_JAX': '1'}, 1, 'pip install'),
    (('out',), {'PLATFORM': 'cpu'}, 1, 'finds no GPU'),
  ],
)
def test_errors(check, tmp_path, arguments, environment, code, wanted):
  arguments = [str(tmp_path / a) if a == 'out' else a for a in arguments]
  result, calls = check(*arguments, **environment)
  assert result.returncode == code
  assert wanted in result.stderr
  assert not calls

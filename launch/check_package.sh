#!/usr/bin/env bash
# Builds an sdist and, from the sdist, a wheel; installs the wheel into a fresh
# environment for each Python that is named, and trains and evaluates the demo's
# models for a few steps, outside of this checkout. Takes about ten minutes per
# Python, most of them for the installation.
#
#   launch/check_package.sh [PYTHON ...]     default: python3
#   launch/check_package.sh python3.11 python3.12 python3.13
#   JAX=0.10.0 launch/check_package.sh       with this version of jax
#
# It leaves the two packages in dist/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root="$(pwd -P)"
if (($# == 0)); then set -- python3; fi

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Not this checkout, and nothing that an earlier run has kept.
unset PYTHONPATH
export PERLHF_START_CACHE=off

outside="$(mktemp -d)"
trap 'rm -rf "$outside"' EXIT

say() { printf '\n== %s\n' "$*"; }

build() {
  say "building with $("$1" --version)"
  "$1" -m venv "$outside/build"
  "$outside/build/bin/python" -m pip install --quiet build
  rm -rf dist
  "$outside/build/bin/python" -m build --outdir dist . >"$outside/build.log" ||
    { cat "$outside/build.log" && exit 1; }
  ls -l dist
}

# The versions that are tested; JAX asks for another one of jax.
constraints() {
  if [[ -z "${JAX:-}" ]]; then
    cat "$root/constraints.txt"
  else
    grep -vE '^(jax|jaxlib|jax-cuda.*|libtpu)==' "$root/constraints.txt"
    echo "jax==$JAX"
  fi
}

install() { # PYTHON VENV
  say "installing the wheel for $("$1" --version)"
  "$1" -m venv "$2"
  constraints >"$outside/constraints.txt"
  "$2/bin/python" -m pip install --quiet --constraint "$outside/constraints.txt" \
    dist/*.whl
}

try() { # VENV FOLDER
  mkdir "$2"
  cd "$2"
  local perlhf="$1/bin/perlhf"
  "$1/bin/python" -c '
import sys, jax, perlhf_jax
print("python", sys.version.split()[0], "jax", jax.__version__)
assert perlhf_jax.__file__.startswith(sys.prefix), perlhf_jax.__file__
'
  "$perlhf" --help
  "$perlhf" tasks >tasks.txt
  grep '^demo_sft ' tasks.txt

  # launch/demo.sh, in little.
  local world=(--gin_file=gin/models/t5_tiny.gin
    --gin_file=gin/optimizers/adamw.gin --gin_file=gin/demo/world.gin)
  local few=(--gin.BATCH_SIZE=8 --gin.EVAL_EXAMPLES=16 --gin.EVAL_PERIOD=2
    --gin.CHECKPOINT_PERIOD=2)
  "$perlhf" train_sft "${world[@]}" --gin_file=gin/lora/none.gin "${few[@]}" \
    --gin.MIXTURE_OR_TASK_NAME="'demo_sft'" --gin.TRAIN_STEPS=4 \
    --gin.MODEL_DIR="'sft'"
  "$perlhf" train_reward "${world[@]}" --gin_file=gin/lora/attention.gin \
    "${few[@]}" --gin.MIXTURE_OR_TASK_NAME="'demo_rm'" --gin.TRAIN_STEPS=4 \
    --gin.INITIAL_CHECKPOINT_PATH="'sft'" --gin.MODEL_DIR="'reward_lora'"
  "$perlhf" train_policy "${world[@]}" --gin_file=gin/lora/attention.gin \
    --gin_file=gin/rl/reinforce.gin --gin_file=gin/demo/policy.gin "${few[@]}" \
    --gin.MIXTURE_OR_TASK_NAME="'demo_prompts'" --gin.TRAIN_STEPS=2 \
    --gin.INITIAL_CHECKPOINT_PATH="'sft'" \
    --gin.REWARD_CHECKPOINT="'reward_lora/checkpoints/best'" \
    --gin.MODEL_DIR="'policy_lora'"
  "$perlhf" evaluate --checkpoint=reward_lora/checkpoints/best \
    --gin.EVAL_EXAMPLES=16
  "$perlhf" evaluate --gin_file=gin/demo/gold.gin --checkpoint=policy_lora \
    --gin.BASELINE_CHECKPOINT="'sft'" --gin.EVAL_EXAMPLES=16
  test -s reward_lora/eval.json -a -s policy_lora/eval.json
  cd "$root"
}

build "$1"
number=0
for python in "$@"; do
  number=$((number + 1))
  install "$python" "$outside/venv_$number"
  try "$outside/venv_$number" "$outside/demo_$number"
  rm -rf "$outside/venv_$number"
  say "$("$python" --version): the wheel trains and evaluates outside the checkout"
done

#!/usr/bin/env bash
# Runs the whole pipeline on the CPU with a tiny model and built-in data, in
# .venv, which it makes first if need be. Every command is printed, so that it
# can be repeated and changed.
#
#   launch/demo.sh [OUTPUT_DIR]          default: demo_output in this checkout
#
# Run again on the same folder it goes on from where it was.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
"$root/launch/setup_venv.sh"

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
mkdir -p "${1:-$root/demo_output}"
output="$(cd "${1:-$root/demo_output}" && pwd -P)"
cd "$root"
SECONDS=0

perlhf() {
  printf '\n$ perlhf' && printf ' %q' "$@" && echo
  .venv/bin/perlhf "$@"
}

train() { # COMMAND NAME TASK TUNING, then more bindings
  perlhf "$1" --gin_file="gin/runs/$1.gin" --gin_file=gin/models/t5_tiny.gin \
    --gin_file="gin/lora/$4.gin" --gin_file=gin/optimizers/adamw.gin \
    --gin_file=gin/demo/world.gin \
    --gin.MODEL_DIR="'$output/$2'" --gin.MIXTURE_OR_TASK_NAME="'$3'" "${@:5}"
}

train train_sft sft demo_sft none \
  --gin.TRAIN_STEPS=1000 --gin.LEARNING_RATE=2e-3

train train_reward reward_lora demo_rm attention \
  --gin.INITIAL_CHECKPOINT_PATH="'$output/sft'" \
  --gin.TRAIN_STEPS=900 --gin.LEARNING_RATE=3e-3
perlhf evaluate --checkpoint="$output/reward_lora/checkpoints/best"

train train_reward reward_full demo_rm none \
  --gin.INITIAL_CHECKPOINT_PATH="'$output/sft'" \
  --gin.TRAIN_STEPS=900 --gin.LEARNING_RATE=1e-3
perlhf evaluate --checkpoint="$output/reward_full/checkpoints/best"

policy() { # NAME TUNING, then more bindings
  train train_policy "$1" demo_prompts "$2" \
    --gin_file=gin/rl/reinforce.gin --gin_file=gin/demo/policy.gin \
    --gin.INITIAL_CHECKPOINT_PATH="'$output/sft'" \
    --gin.REWARD_CHECKPOINT="'$output/reward_lora/checkpoints/best'" "${@:3}"
}

judge() { # CHECKPOINT, then more bindings: the gold score of sampled answers
  perlhf evaluate --gin_file=gin/runs/evaluate.gin \
    --gin_file=gin/demo/gold.gin --checkpoint="$1" \
    --gin.MIXTURE_OR_TASK_NAME="'demo_prompts'" --gin.TEMPERATURE=1.0 "${@:2}"
}

policy policy_lora attention --gin.LEARNING_RATE=2e-3
policy policy_full none --gin.LEARNING_RATE=3e-4
judge "$output/sft"
for name in policy_lora policy_full; do
  judge "$output/$name" --gin.BASELINE_CHECKPOINT="'$output/sft'"
done

.venv/bin/python launch/demo_table.py "$output" "$SECONDS"

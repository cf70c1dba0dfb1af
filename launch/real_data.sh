#!/usr/bin/env bash
# Trains a policy on real preferences from scratch, on the CPU: a vocabulary, a
# tiny T5 tuned on the good responses, from it a LoRA and a fully tuned reward
# model, evaluated on the held-out split; then two LoRA reward models, each from
# one half of the data, and a LoRA policy that is trained against the first and
# judged on held-out prompts by both.
#
#   PERLHF_DATA_DIR=/path/to/data launch/real_data.sh coffee [OUTPUT_DIR]
#
# DATASET is coffee, ticketing or harmless; tasks/taskmaster.py and tasks/hh.py
# say where to get the files. Default OUTPUT_DIR: runs/DATASET.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
case "${1:-}" in
  coffee | ticketing) task="taskmaster_$1" ;;
  harmless) task="hh_$1" ;;
  *)
    sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
"$root/launch/setup_venv.sh"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
output="${2:-$root/runs/$1}"
mkdir -p "$output"
output="$(cd "$output" && pwd -P)"
PERLHF_DATA_DIR="$(cd "${PERLHF_DATA_DIR:-.}" && pwd -P)"
export PERLHF_DATA_DIR
cd "$root"

perlhf() {
  printf '\n$ perlhf' && printf ' %q' "$@" && echo
  .venv/bin/perlhf "$@"
}

train() { # COMMAND NAME TASK TUNING, then more bindings
  perlhf "$1" \
    --gin_file=gin/models/t5_tiny_pieces.gin --gin_file="gin/lora/$4.gin" \
    --gin_file=gin/optimizers/adamw.gin \
    --gin.VOCABULARY_PATH="'$output/spiece.model'" \
    --gin.MODEL_DIR="'$output/$2'" --gin.MIXTURE_OR_TASK_NAME="'$3'" \
    --gin.TASK_FEATURE_LENGTHS="{'inputs': 192, 'targets': 48}" \
    --gin.BATCH_SIZE=32 --gin.EVAL_PERIOD=50 --gin.CHECKPOINT_PERIOD=50 \
    --gin.LENGTH_BUCKETS=0 --gin.SKIP_BAD_ROWS=True "${@:5}"
}

reward() { # NAME TUNING LEARNING_RATE, then more bindings
  train train_reward "$1" "${task}_rm" "$2" --gin.TRAIN_STEPS=300 \
    --gin.INITIAL_CHECKPOINT_PATH="'$output/sft/checkpoints/best'" \
    --gin.LEARNING_RATE="$3" "${@:4}"
  perlhf evaluate --checkpoint="$output/$1/checkpoints/best" \
    --gin.SKIP_BAD_ROWS=True
}

[[ -e "$output/spiece.model" ]] ||
  perlhf train_vocabulary --task="${task}_rm" \
    --output="$output/spiece.model" --vocab_size=4000
train train_sft sft "${task}_sft" none \
  --gin.TRAIN_STEPS=400 --gin.LEARNING_RATE=2e-3
reward reward_lora attention 2e-3
reward reward_full none 5e-4
reward reward_half_a attention 2e-3 --gin.TRAIN_PART="(0, 2)"
reward reward_half_b attention 2e-3 --gin.TRAIN_PART="(1, 2)"

train train_policy policy "${task}_prompts" attention \
  --gin_file=gin/rl/reinforce.gin --gin.TRAIN_STEPS=200 \
  --gin.INITIAL_CHECKPOINT_PATH="'$output/sft/checkpoints/best'" \
  --gin.REWARD_CHECKPOINT="'$output/reward_half_a/checkpoints/best'" \
  --gin.LEARNING_RATE=1e-3 --gin.VALUE_LEARNING_RATE=1e-3 \
  --gin.REFUSE_LONG_PROMPTS=False
for half in a b; do # Into policy/eval_half_a.json and eval_half_b.json.
  perlhf evaluate --checkpoint="$output/policy" --gin.SKIP_BAD_ROWS=True \
    --gin.REWARD_CHECKPOINT="'$output/reward_half_$half/checkpoints/best'" \
    --gin.BASELINE_CHECKPOINT="'$output/sft/checkpoints/best'"
  mv "$output/policy/eval.json" "$output/policy/eval_half_$half.json"
done

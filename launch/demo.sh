#!/usr/bin/env bash
# Runs the whole pipeline on the CPU with a tiny model and built-in data, in
# .venv, which it makes first if need be. Every command is printed, so that it
# can be repeated and changed. Ends with a page of all runs, report.html.
#
#   launch/demo.sh [OUTPUT_DIR]          default: demo_output in this checkout
#
# A second run with the same folder goes on where the first one stopped.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source=launch/demo_pipeline.bash
source "$root/launch/demo_pipeline.bash"
say_how_long 16
start_demo "$root" demo t5_tiny "${1:-$root/demo_output}" report

sft sft --gin.TRAIN_STEPS=1000 --gin.LEARNING_RATE=2e-3
reward reward_lora attention --gin.TRAIN_STEPS=900 --gin.LEARNING_RATE=3e-3
reward reward_full none --gin.TRAIN_STEPS=900 --gin.LEARNING_RATE=1e-3
policy policy_lora attention --gin.LEARNING_RATE=2e-3
policy policy_full none --gin.LEARNING_RATE=3e-4
preference policy_dpo attention --gin.TRAIN_STEPS=300 --gin.BETA=1.0 \
  --gin.LEARNING_RATE=1e-3
judge_all policy_lora policy_full policy_dpo
print_table
write_report

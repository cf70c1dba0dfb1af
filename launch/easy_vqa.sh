#!/usr/bin/env bash
# The pipeline of launch/demo_vqa.sh on the real files of easy-VQA: SFT on
# demonstrations, about 40% of them wrong, a pointwise LoRA reward model, and
# LoRA reinforcement learning. sft/eval.json and policy_lora/eval.json get the
# VQA accuracy (judge_score) on the held-out test split. Ends with a page of all
# runs, report.html.
#
#   PERLHF_DATA_DIR=/path/to/data launch/easy_vqa.sh [OUTPUT_DIR]
#
# tasks/easy_vqa.py says where to get the files. Default: runs/easy_vqa.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
PERLHF_DATA_DIR="$(cd "${PERLHF_DATA_DIR:-.}" && pwd -P)"
export PERLHF_DATA_DIR
# shellcheck source=launch/demo_pipeline.bash
source "$root/launch/demo_pipeline.bash"
start_demo "$root" easy_vqa pali_tiny "${1:-$root/runs/easy_vqa}" report

sft sft_noisy --gin.TRAIN_STEPS=800 --gin.LEARNING_RATE=1e-3 \
  --gin.TRAIN_VIT=True
reward reward_lora attention --gin.TRAIN_STEPS=500 --gin.LEARNING_RATE=2e-3
policy policy_lora attention --gin.LEARNING_RATE=2e-3
judge_all policy_lora
write_report

#!/usr/bin/env bash
# The pipeline of launch/demo.sh on drawn pictures and questions about them: a
# tiny PaLI from random weights, SFT, pointwise reward models, reinforcement
# learning, on the CPU. Ends with a picture of pictures, montage.png, and a page
# of all runs, report.html.
#
#   launch/demo_vqa.sh [OUTPUT_DIR]      default: demo_vqa_output
#
# A second run with the same folder goes on where the first one stopped.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
# shellcheck source=launch/demo_pipeline.bash
source "$root/launch/demo_pipeline.bash"
say_how_long 9
start_demo "$root" demo_vqa pali_tiny "${1:-$root/demo_vqa_output}" report

# From random weights the ViT has to be trained; later stages leave it frozen.
sft sft --gin.TRAIN_STEPS=800 --gin.LEARNING_RATE=1e-3 --gin.TRAIN_VIT=True
reward reward_lora attention --gin.TRAIN_STEPS=500 --gin.LEARNING_RATE=2e-3
reward reward_full none --gin.TRAIN_STEPS=300 --gin.LEARNING_RATE=1e-3
policy policy_lora attention --gin.LEARNING_RATE=2e-3
policy policy_full none --gin.LEARNING_RATE=1e-4
judge_all policy_lora policy_full
print_table
.venv/bin/python launch/demo_vqa_montage.py "$output"
write_report

#!/usr/bin/env bash
# Has perlhf check a command, and submits it to SLURM, as one process for each
# GPU. Ten minutes before the time limit SLURM sends SIGTERM; the command saves,
# exits with 75, and the job is queued again and goes on from there, until it
# has finished.
#
#   launch/slurm.sh --name=rm --nodes=2 --gpus_per_node=8 --time=12:00:00 -- \
#     perlhf train_reward ... --gin.MODEL_DIR="'/shared/runs/rm'"
#
#   flag             variable              what; default
#   --name           PERLHF_NAME           of the job
#   --nodes          PERLHF_NODES          default: 1
#   --gpus_per_node  PERLHF_GPUS_PER_NODE  default: 8
#   --time           PERLHF_TIME           limit of one try, as sbatch takes it
#   --directory      PERLHF_DIRECTORY      the checkout; default: this one
#   --data_dir       PERLHF_DATA_DIR       of the data
#   --cache_dir      PERLHF_CACHE_DIR      of prepared data
#   --max_restarts                         default: 100
#   --grace_seconds                        before the limit; default: 600
#   --no_check                             do not check the command
#   --dry_run                              check the command, print what would
#                                          be run
#
# The checkout, with .venv (launch/setup_venv.sh cuda12), the data and MODEL_DIR
# lie where all nodes see them.
#
# sbatch reads SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_QOS from the
# environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR/..
source launch/launching.bash

name="${PERLHF_NAME:-}"
nodes="${PERLHF_NODES:-1}"
gpus_per_node="${PERLHF_GPUS_PER_NODE:-8}"
time="${PERLHF_TIME:-}"
directory="${PERLHF_DIRECTORY:-$PWD}"
data_dir="${PERLHF_DATA_DIR:-}"
cache_dir="${PERLHF_CACHE_DIR:-}"
max_restarts=100
grace_seconds=600
flags=(name nodes gpus_per_node time directory data_dir cache_dir max_restarts
  grace_seconds)
read_flags "$@"
require_name
require time
require_number nodes gpus_per_node max_restarts grace_seconds
require_command
check_command "--num_devices=$((nodes * gpus_per_node))"

# Each process finds the others, and its GPU, in SLURM's variables.
job="srun --kill-on-bad-exit=0 $(in_environment cuda,cpu \
  .venv/bin/perlhf "${command[@]:1}" --multihost)"
# shellcheck disable=SC2016  # It is for the job to expand.
job+=' || { code=$?; [ "$code" = 75 ] &&'
# shellcheck disable=SC2016
job+=' [ "${SLURM_RESTART_COUNT:-0}" -lt '"$max_restarts"' ] &&'
# shellcheck disable=SC2016
job+=' scontrol requeue "$SLURM_JOB_ID"; exit "$code"; }'

run sbatch --job-name="$name" --nodes="$nodes" \
  --ntasks-per-node="$gpus_per_node" --gpus-per-node="$gpus_per_node" \
  --time="$time" --signal="TERM@$grace_seconds" --requeue \
  --open-mode=append --output="$name-%j.log" --chdir="$directory" --wrap="$job"

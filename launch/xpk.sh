#!/usr/bin/env bash
# Runs one perlhf command on every host of TPU slices of a GKE cluster that XPK
# has made (pip install xpk). perlhf checks the command first. XPK queues it, and
# starts it again after a preemption and after exit code 75; the command then
# goes on from its last checkpoint.
#
#   launch/xpk.sh --name=rm --cluster=tpus --topology=v5e-16 --zone=us-west4-a \
#     --image=us-west4-docker.pkg.dev/my-project/perlhf/perlhf:tpu -- \
#     perlhf train_reward ... --gin.MODEL_DIR="'gs://my-bucket/rm'"
#   launch/xpk.sh --name=rm --cluster=tpus --zone=us-west4-a --delete
#
#   flag             variable           what; default
#   --name           PERLHF_NAME        of the workload
#   --cluster        PERLHF_CLUSTER
#   --topology       PERLHF_TOPOLOGY    as perlhf plan names it
#   --num_slices     PERLHF_NUM_SLICES  slices of it; default: 1
#   --image          PERLHF_IMAGE       made by launch/Dockerfile
#   --zone           PERLHF_ZONE        default: gcloud's
#   --project        PERLHF_PROJECT     default: gcloud's
#   --data_dir       PERLHF_DATA_DIR    gs://... of the data
#   --cache_dir      PERLHF_CACHE_DIR   of prepared data
#   --log_dir        PERLHF_LOG_DIR     gs://... for what the hosts print;
#                                       default: MODEL_DIR's
#   --spot                              of node pools that XPK makes for it
#   --reservation    PERLHF_RESERVATION the same, from this reservation
#   --max_restarts                      default: 100
#   --grace_seconds                     to save, after SIGTERM; default: 600
#   --delete                            only delete the workload
#   --no_check                          do not check the command
#   --dry_run                           check the command, print what would be
#                                       run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR/..
source launch/launching.bash

name="${PERLHF_NAME:-}"
cluster="${PERLHF_CLUSTER:-}"
topology="${PERLHF_TOPOLOGY:-}"
num_slices="${PERLHF_NUM_SLICES:-1}"
image="${PERLHF_IMAGE:-}"
zone="${PERLHF_ZONE:-}"
project="${PERLHF_PROJECT:-}"
data_dir="${PERLHF_DATA_DIR:-}"
cache_dir="${PERLHF_CACHE_DIR:-}"
log_dir="${PERLHF_LOG_DIR:-}"
spot=false
reservation="${PERLHF_RESERVATION:-}"
max_restarts=100
grace_seconds=600
delete=false
flags=(name cluster topology num_slices image zone project data_dir cache_dir
  log_dir spot reservation max_restarts grace_seconds delete)
read_flags "$@"
require_name
require cluster

where=("--workload=$name" "--cluster=$cluster")
[[ -z "$zone" ]] || where+=("--zone=$zone")
[[ -z "$project" ]] || where+=("--project=$project")

if "$delete"; then
  run xpk workload delete "${where[@]}"
  exit
fi

require topology image
require_slices
require_number max_restarts grace_seconds
exclude spot reservation
require_command
row="$(topology_row "$topology")"
read -r topology tpu_type _ accelerator _ _ hosts _ <<<"$row"
require_gke "$topology" "$accelerator" "$hosts"
check_command "--topology=$(name_slices "$topology")"
require_bucket
keep_output python

capacity=()
! "$spot" || capacity=(--spot)
[[ -z "$reservation" ]] || capacity=("--reservation=$reservation")

variables=()
while IFS= read -r line; do
  variables+=("--env=$line")
done < <(environment tpu,cpu)

# exec, so that the SIGTERM that XPK passes on reaches it.
run xpk workload create "${where[@]}" --tpu-type="$tpu_type" \
  --num-slices="$num_slices" ${capacity[@]+"${capacity[@]}"} \
  --docker-image="$image" --max-restarts="$max_restarts" \
  --restart-on-exit-codes=75 \
  --termination-grace-period-seconds="$grace_seconds" "${variables[@]}" \
  --command="exec $(quote ${logging[@]+"${logging[@]}"} "${command[@]}" \
    --multihost)"

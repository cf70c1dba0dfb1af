#!/usr/bin/env bash
# Runs one perlhf command on every host of a TPU slice of a GKE cluster that XPK
# has made (pip install xpk). XPK queues it, and starts it again after a
# preemption and after exit code 75; the command then goes on from its last
# checkpoint.
#
#   launch/xpk.sh --name=rm --cluster=tpus --topology=v5e-16 --zone=us-west4-a \
#     --image=us-west4-docker.pkg.dev/my-project/perlhf/perlhf:tpu -- \
#     perlhf train_reward ... --gin.MODEL_DIR="'gs://my-bucket/rm'"
#   launch/xpk.sh --name=rm --cluster=tpus --zone=us-west4-a --delete
#
#   flag             variable         what; default
#   --name           PERLHF_NAME      of the workload
#   --cluster        PERLHF_CLUSTER
#   --topology       PERLHF_TOPOLOGY  as perlhf plan names it
#   --image          PERLHF_IMAGE     made by launch/Dockerfile
#   --zone           PERLHF_ZONE      default: gcloud's
#   --project        PERLHF_PROJECT   default: gcloud's
#   --data_dir       PERLHF_DATA_DIR  gs://... of the data
#   --max_restarts                    default: 100
#   --grace_seconds                   to save, after SIGTERM; default: 600
#   --delete                          only delete the workload
#   --dry_run                         print the command, run nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR/..
source launch/launching.bash

name="${PERLHF_NAME:-}"
cluster="${PERLHF_CLUSTER:-}"
topology="${PERLHF_TOPOLOGY:-}"
image="${PERLHF_IMAGE:-}"
zone="${PERLHF_ZONE:-}"
project="${PERLHF_PROJECT:-}"
data_dir="${PERLHF_DATA_DIR:-}"
max_restarts=100
grace_seconds=600
delete=false
flags=(name cluster topology image zone project data_dir max_restarts
  grace_seconds delete)
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
require_number max_restarts grace_seconds
require_command
row="$(topology_row "$topology")"
read -r _ tpu_type _ <<<"$row"

variables=()
while IFS= read -r line; do
  variables+=("--env=$line")
done < <(environment tpu,cpu)

# exec, so that the SIGTERM that XPK passes on reaches perlhf.
run xpk workload create "${where[@]}" --tpu-type="$tpu_type" --num-slices=1 \
  --docker-image="$image" --max-restarts="$max_restarts" \
  --restart-on-exit-codes=75 \
  --termination-grace-period-seconds="$grace_seconds" "${variables[@]}" \
  --command="exec $(quote "${command[@]}" --multihost)"

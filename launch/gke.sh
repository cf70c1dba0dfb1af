#!/usr/bin/env bash
# Runs one perlhf command on every host of a TPU node pool of a GKE cluster, or
# of several, as a JobSet (jobset.x-k8s.io/v1alpha2) in kubectl's current
# context. perlhf checks the command first. The JobSet is made again after a
# preemption and after exit code 75, and the command goes on from its last
# checkpoint; exit codes 1 and 2 end it.
#
#   launch/gke.sh --name=rm --topology=v5e-16 --spot \
#     --image=us-west4-docker.pkg.dev/my-project/perlhf/perlhf:tpu -- \
#     perlhf train_reward ... --gin.MODEL_DIR="'gs://my-bucket/rm'"
#   launch/gke.sh --name=rm --delete
#
#   flag                  variable                   what; default
#   --name                PERLHF_NAME                of the JobSet
#   --topology            PERLHF_TOPOLOGY            as perlhf plan names it
#   --num_slices          PERLHF_NUM_SLICES          node pools; default: 1
#   --image               PERLHF_IMAGE               made by launch/Dockerfile
#   --namespace           PERLHF_NAMESPACE           default: default
#   --kubernetes_account  PERLHF_KUBERNETES_ACCOUNT  default: default
#   --data_dir            PERLHF_DATA_DIR            gs://... of the data
#   --cache_dir           PERLHF_CACHE_DIR           of prepared data
#   --log_dir             PERLHF_LOG_DIR             gs://... for what the hosts
#                                                    print; default: MODEL_DIR's
#   --labels              PERLHF_LABELS              KEY=VALUE,... of JobSet, pods
#   --spot                                           the nodes are spot nodes
#   --reservation         PERLHF_RESERVATION         of the nodes
#   --max_restarts                                   default: 100
#   --grace_seconds       to save, after SIGTERM;    default: 600
#   --delete                                         only delete the JobSet
#   --no_check                                       do not check the command
#   --dry_run                                        check the command, print
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR/..
source launch/launching.bash

name="${PERLHF_NAME:-}"
topology="${PERLHF_TOPOLOGY:-}"
num_slices="${PERLHF_NUM_SLICES:-1}"
image="${PERLHF_IMAGE:-}"
namespace="${PERLHF_NAMESPACE:-default}"
kubernetes_account="${PERLHF_KUBERNETES_ACCOUNT:-default}"
data_dir="${PERLHF_DATA_DIR:-}"
cache_dir="${PERLHF_CACHE_DIR:-}"
log_dir="${PERLHF_LOG_DIR:-}"
labels="${PERLHF_LABELS:-}"
spot=false
reservation="${PERLHF_RESERVATION:-}"
max_restarts=100
grace_seconds=600
delete=false
flags=(name topology num_slices image namespace kubernetes_account data_dir
  cache_dir log_dir labels spot reservation max_restarts grace_seconds delete)
read_flags "$@"
require_name

if "$delete"; then
  run kubectl delete jobset "$name" --namespace="$namespace"
  exit
fi

require topology image
require_slices
require_number max_restarts grace_seconds
exclude spot reservation
require_command
[[ "$labels" =~ ^([^=,]+=[^=,]*(,[^=,]+=[^=,]*)*)?$ ]] ||
  die "--labels=$labels is not KEY=VALUE,KEY=VALUE,..."
row="$(topology_row "$topology")"
read -r topology _ _ accelerator _ gke_topology hosts chips <<<"$row"
require_gke "$topology" "$accelerator" "$hosts"
check_command "--topology=$(name_slices "$topology")"
require_bucket
keep_output python

json() { # A string of JSON, which is one of YAML.
  local text="${1//\\/\\\\}"
  text="${text//\"/\\\"}"
  printf '"%s"' "${text//$'\n'/\\n}"
}

words() { # INDENTATION WORD ...: a list, an item a line.
  local word
  for word in "${@:2}"; do
    printf '%s- %s\n' "$1" "$(json "$word")"
  done
}

key_values() { # INDENTATION: `labels`
  local pair
  while IFS= read -r -d, pair; do
    printf '%s%s: %s\n' "$1" "${pair%%=*}" "$(json "${pair#*=}")"
  done <<<"$labels,"
}

variables() { # INDENTATION
  environment tpu,cpu | while IFS= read -r line; do
    printf '%s- name: %s\n' "$1" "${line%%=*}"
    printf '%s  value: %s\n' "$1" "$(json "${line#*=}")"
  done
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(json "$name")
  namespace: $(json "$namespace")
YAML
  [[ -z "$labels" ]] || printf '  labels:\n%s\n' "$(key_values '    ')"
  cat <<YAML
  annotations:
    # Each job has a slice, which is a node pool, to itself.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  # JobSet makes the headless service by which the hosts find each other.
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
  ttlSecondsAfterFinished: 86400
  failurePolicy:
    maxRestarts: $max_restarts
    rules:
    - name: mistake
      action: FailJobSet
      onJobFailureReasons:
      - PodFailurePolicy
  replicatedJobs:
  # GKE tells the hosts of several slices how many these are, which of them is
  # theirs and where the first host is: MEGASCALE_NUM_SLICES, MEGASCALE_SLICE_ID
  # and MEGASCALE_COORDINATOR_ADDRESS.
  - name: slice
    replicas: $num_slices
    template:
      spec:
        completionMode: Indexed
        completions: $hosts
        parallelism: $hosts
        # A run cannot go on without one host: all are started again.
        backoffLimit: 0
        podFailurePolicy:
          rules:
          # A node that was taken away, whatever the command said then.
          - action: Count
            onPodConditions:
            - type: DisruptionTarget
              status: "True"
          # 2 is a mistake in the command, 1 a fault in the code: both would be
          # met again. Other codes, such as 75, lead to a restart.
          - action: FailJob
            onExitCodes:
              containerName: perlhf
              operator: In
              values:
              - 1
              - 2
        template:
YAML
  [[ -z "$labels" ]] ||
    printf '          metadata:\n            labels:\n%s\n' \
      "$(key_values '              ')"
  cat <<YAML
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: $grace_seconds
            serviceAccountName: $(json "$kubernetes_account")
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $gke_topology
YAML
  ! "$spot" || echo '              cloud.google.com/gke-spot: "true"'
  [[ -z "$reservation" ]] || printf '%s: %s\n' \
    '              cloud.google.com/reservation-name' "$(json "$reservation")"
  cat <<YAML
            tolerations:
            - key: google.com/tpu
              operator: Exists
              effect: NoSchedule
YAML
  ! "$spot" || cat <<YAML
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: "true"
              effect: NoSchedule
YAML
  cat <<YAML
            containers:
            - name: perlhf
              image: $(json "$image")
              command:
$(words '              ' ${logging[@]+"${logging[@]}"} "${command[@]}" --multihost)
              env:
$(variables '              ')
              resources:
                limits:
                  google.com/tpu: $chips
YAML
}

if "$dry_run"; then
  echo "kubectl apply --filename=- <<'YAML'"
  manifest
  echo YAML
else
  manifest | run kubectl apply --filename=-
fi

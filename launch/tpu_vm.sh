#!/usr/bin/env bash
# Runs one perlhf command on every host of a Cloud TPU slice, or of several. It
# has perlhf check the command, asks for the slice (a queued resource), waits
# for it, installs the last commit of this checkout on all hosts, runs the
# command with --multihost, and deletes the slice when the command has ended.
# After a preemption it asks for a new slice. Then, and after exit code 75, the
# command goes on from its last checkpoint. An existing slice of that name is
# used as it is.
#
#   launch/tpu_vm.sh --name=rm --topology=v5e-16 --zone=us-west4-a --spot -- \
#     perlhf train_reward ... --gin.MODEL_DIR="'gs://my-bucket/rm'"
#   launch/tpu_vm.sh --name=rm --zone=us-west4-a --delete
#
#   flag                    variable                what; default
#   --name                  PERLHF_NAME             of the slice
#   --topology              PERLHF_TOPOLOGY         as perlhf plan names it
#   --num_slices            PERLHF_NUM_SLICES       slices of it; default: 1
#   --zone                  PERLHF_ZONE             of the slice
#   --project               PERLHF_PROJECT          default: gcloud's
#   --data_dir              PERLHF_DATA_DIR         gs://... of the data
#   --cache_dir             PERLHF_CACHE_DIR        of prepared data
#   --log_dir               PERLHF_LOG_DIR          gs://... for what the hosts
#                                                   print; default: MODEL_DIR's
#   --service_account       PERLHF_SERVICE_ACCOUNT  default: Compute Engine's
#   --runtime_version       PERLHF_RUNTIME_VERSION  default: the topology's
#   --network               PERLHF_NETWORK          default: default
#   --subnetwork            PERLHF_SUBNETWORK       default: the network's
#   --internal_ips                                  no external addresses
#   --labels                PERLHF_LABELS           of the slice: KEY=VALUE,...
#   --spot                                          cheap, may be preempted
#   --reserved                                      of the project's reservation
#   --valid_until_duration                          give up if there is none by
#                                                   then, such as 12h
#   --valid_until_time                              the same, as a time
#   --keep                                          do not delete the slice
#   --max_restarts                                  default: 100
#   --poll_seconds                                  between looks; default: 60
#   --delete                                        only delete the slice
#   --no_check                                      do not check the command
#   --dry_run                                       check the command, print
#                                                   what would be run
#
# The exit code is that of the command (docs/errors.md lists them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR/..
source launch/launching.bash

name="${PERLHF_NAME:-}"
topology="${PERLHF_TOPOLOGY:-}"
num_slices="${PERLHF_NUM_SLICES:-1}"
zone="${PERLHF_ZONE:-}"
project="${PERLHF_PROJECT:-}"
data_dir="${PERLHF_DATA_DIR:-}"
cache_dir="${PERLHF_CACHE_DIR:-}"
service_account="${PERLHF_SERVICE_ACCOUNT:-}"
log_dir="${PERLHF_LOG_DIR:-}"
runtime_version="${PERLHF_RUNTIME_VERSION:-}"
network="${PERLHF_NETWORK:-}"
subnetwork="${PERLHF_SUBNETWORK:-}"
internal_ips=false
labels="${PERLHF_LABELS:-}"
spot=false
reserved=false
valid_until_duration=""
valid_until_time=""
keep=false
max_restarts=100
poll_seconds=60
delete=false
flags=(name topology num_slices zone project data_dir cache_dir log_dir
  service_account runtime_version network subnetwork internal_ips labels spot
  reserved valid_until_duration valid_until_time keep max_restarts poll_seconds
  delete)
read_flags "$@"
require_name
require zone
require_number max_restarts poll_seconds

where=("--zone=$zone")
[[ -z "$project" ]] || where+=("--project=$project")

state=(gcloud compute tpus queued-resources describe "$name" "${where[@]}"
  '--format=value(state.state)')

delete_slice() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" \
    --force --quiet
}

if "$delete"; then
  delete_slice
  exit
fi

require topology
require_slices
exclude spot reserved
exclude valid_until_duration valid_until_time
require_command
row="$(topology_row "$topology")"
read -r topology accelerator_type default_runtime_version _ _ _ hosts _ \
  <<<"$row"
[[ "$default_runtime_version" != - ]] ||
  die "--topology=$topology is rented through GKE alone: launch/gke.sh or" \
    "launch/xpk.sh"
check_command "--topology=$(name_slices "$topology")"
# Several hosts share no disk.
if ! "$keep" || "$spot" || ((hosts * num_slices > 1)); then
  require_bucket ' (or --keep a slice of one host that is not --spot)'
fi
keep_output .venv/bin/python

create_slice() {
  local flags=("--node-id=$name") flag
  ((num_slices == 1)) ||
    flags=("--node-count=$num_slices" "--node-prefix=$name")
  for flag in "--service-account=$service_account" "--network=$network" \
    "--subnetwork=$subnetwork" "--internal-ips=$internal_ips" \
    "--labels=$labels" "--spot=$spot" "--reserved=$reserved" \
    "--valid-until-duration=$valid_until_duration" \
    "--valid-until-time=$valid_until_time"; do
    case "$flag" in
      *= | *=false) ;;
      *) flags+=("${flag%=true}") ;;
    esac
  done
  run gcloud compute tpus queued-resources create "$name" \
    "${where[@]}" --accelerator-type="$accelerator_type" \
    --runtime-version="${runtime_version:-$default_runtime_version}" \
    "${flags[@]}"
}

current_state() {
  "${state[@]}" 2>/dev/null || echo NONE
}

get_slice() { # Returns when the slice is there.
  local now
  while now="$(current_state)" && [[ "$now" != ACTIVE ]]; do
    note "the slice $name: $now"
    case "$now" in
      NONE) create_slice ;;
      SUSPENDED) delete_slice ;;
      FAILED)
        die "the request for $name has failed; this says why:" \
          "$(quote "${state[@]:0:${#state[@]}-1}")"
        ;;
      *) sleep "$poll_seconds" ;;
    esac
  done
}

# All hosts of all slices at once: they wait for each other.
all=(--node=all --worker=all --batch-size=all)
! "$internal_ips" || all+=(--internal-ip)

# Google's firewalls drop a connection that is silent for ten minutes.
on_all_hosts() {
  run gcloud compute tpus queued-resources ssh "$name" "${where[@]}" \
    "${all[@]}" --ssh-flag=-oServerAliveInterval=30 --command="$1"
}

# The runtimes bring an older Python than perlhf needs; uv brings a newer one.
install='mkdir -p perlhf_jax && tar -xzf perlhf_jax.tar.gz -C perlhf_jax'
install+=' && python3 -m pip install --quiet --user uv'
install+=' && python3 -m uv python install --quiet 3.12'
# shellcheck disable=SC2016  # It is for the hosts to expand.
install+=' && PYTHON="$(python3 -m uv python find 3.12)"'
install+=' perlhf_jax/launch/setup_venv.sh tpu'

run_on_slice() {
  run mkdir -p build &&
    run git archive --format=tar.gz --output=build/perlhf_jax.tar.gz HEAD &&
    run gcloud compute tpus queued-resources scp build/perlhf_jax.tar.gz \
      "$name:" "${where[@]}" "${all[@]}" &&
    on_all_hosts "$install" &&
    on_all_hosts "$(on_host perlhf_jax tpu,cpu --multihost)"
}

if "$dry_run"; then
  note "unless the slice is there:"
  create_slice
  note "until this says ACTIVE; if SUSPENDED, delete as below and create again:"
  quote "${state[@]}"
  run_on_slice
  note "after exit code 75 or a preemption again from the top, else:"
  if "$keep"; then
    note "nothing more: the slice is kept"
  else
    delete_slice
  fi
  exit
fi

trap 'note "a slice may still be there, and cost money; to delete it:" \
  "launch/tpu_vm.sh --name=$name ${where[*]} --delete"' EXIT
for ((restarts = 0; ; restarts++)); do
  get_slice
  status=0
  run_on_slice || status=$?
  ((status != 0)) || break
  # A slice that is being taken away ends its connections first.
  sleep "$poll_seconds"
  [[ "$status" == 75 || "$(current_state)" != ACTIVE ]] || break
  ((restarts < max_restarts)) || break
  note "exit code $status; restart $((restarts + 1)) of at most $max_restarts"
done
note "the command has ended with exit code $status"
if ! "$keep"; then
  delete_slice
  trap - EXIT
fi
exit "$status"

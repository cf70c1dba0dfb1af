#!/usr/bin/env bash
# Has perlhf check a command here, and runs it on every host of a list, over
# ssh, as one process per host. After exit code 75 or a lost connection the
# command is started again, and goes on from its last checkpoint. Ctrl-C makes
# all hosts save and stop.
#
#   launch/ssh.sh --hosts=node1,node2 -- \
#     perlhf train_reward ... --gin.MODEL_DIR="'/shared/runs/rm'"
#
#   flag                variable                 what; default
#   --hosts             PERLHF_HOSTS             a,b,c for the processes 0, 1, 2
#   --devices_per_host  PERLHF_DEVICES_PER_HOST  for the check; default: 8
#   --directory         PERLHF_DIRECTORY         default: perlhf_jax
#   --port              PERLHF_PORT              of the first; default: 8476
#   --data_dir          PERLHF_DATA_DIR          of the data
#   --cache_dir         PERLHF_CACHE_DIR         of prepared data
#   --platforms         PERLHF_PLATFORMS         for JAX; default: cuda,cpu
#   --max_restarts                               default: 100
#   --poll_seconds                               before a restart; default: 60
#   --no_check                                   do not check the command
#   --dry_run                                    check the command, print
#                                                what would be run
#
# Every host needs the checkout with .venv (launch/setup_venv.sh cuda12) and the
# same MODEL_DIR and data, on a shared file system or in a bucket.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR/..
source launch/launching.bash

hosts="${PERLHF_HOSTS:-}"
devices_per_host="${PERLHF_DEVICES_PER_HOST:-8}"
directory="${PERLHF_DIRECTORY:-perlhf_jax}"
port="${PERLHF_PORT:-8476}"
data_dir="${PERLHF_DATA_DIR:-}"
cache_dir="${PERLHF_CACHE_DIR:-}"
platforms="${PERLHF_PLATFORMS:-cuda,cpu}"
max_restarts=100
poll_seconds=60
flags=(hosts devices_per_host directory port data_dir cache_dir platforms
  max_restarts poll_seconds)
read_flags "$@"
require hosts
require_number devices_per_host port max_restarts poll_seconds
require_command
IFS=, read -r -a host <<<"$hosts"
check_command "--num_devices=$((${#host[@]} * devices_per_host))"

to_host() { # HOST COMMAND
  run ssh -n -o BatchMode=yes -o ServerAliveInterval=30 "$1" "$2"
}

start() { # INDEX
  to_host "${host[$1]}" "$(on_host "$directory" "$platforms" \
    --coordinator_address="${host[0]#*@}:$port" \
    --num_processes="${#host[@]}" --process_id="$1")"
}

stop() {
  local each
  for each in "${host[@]}"; do
    to_host "$each" "fuser -s -k -TERM $(quote "$directory/run.lock")" || true
  done
}

# One host's mistake ends the others with 75, so it is what counts.
wait_for_all() { # PROCESS ...
  local process code status=0
  for process; do
    code=0
    wait "$process" || code=$?
    case "$code" in
      0) ;;
      75 | 255) ((status != 0)) || status=75 ;;
      *) status="$code" ;;
    esac
  done
  return "$status"
}

if "$dry_run"; then
  for index in "${!host[@]}"; do
    start "$index"
  done
  note "at once; after exit code 75 from the top"
  exit
fi

trap 'trap - INT TERM; stop; wait; exit 75' INT TERM
for ((restarts = 0; ; restarts++)); do
  processes=()
  for index in "${!host[@]}"; do
    start "$index" &
    processes+=("$!")
  done
  status=0
  wait_for_all "${processes[@]}" || status=$?
  ((status == 75 && restarts < max_restarts)) || exit "$status"
  note "exit code 75; restart $((restarts + 1)) of at most $max_restarts"
  sleep "$poll_seconds"
done

# shellcheck shell=bash
# What the launchers share: flags, --help, --dry_run, and commands printed as
# they could be typed. It is sourced; bash 3.2, which macOS has, is enough.

# The launcher's own: the names of its flags, and those that are read here.
flags=()
name=""
data_dir=""
cache_dir=""
log_dir=""
num_slices=1

dry_run=false
no_check=false
command=()

# What the command reads and writes, and what stands before it where its output
# is kept.
inputs=()
written=()
logging=()

# Those of perlhf_jax/cli/commands.py with `on_hosts`.
on_hosts=(train_sft train_reward train_dpo train_policy evaluate score generate
  benchmark)

# The comment at the top of the launcher.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

die() {
  echo "$(basename "$0"): error: $*" >&2
  exit 2
}

# read_flags ARGUMENT ...
# Sets the variable NAME for each --NAME=VALUE with NAME in `flags`, and
# `command` to what follows --. A variable that is true or false is a switch:
# --NAME means true.
read_flags() {
  local flag value
  while (($#)); do
    case "$1" in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        shift
        command=("$@")
        return
        ;;
      --*) ;;
      *) die "'$1' is not a flag; the perlhf command goes after --" ;;
    esac
    flag="${1#--}"
    flag="${flag%%=*}"
    flag="${flag//-/_}"
    [[ " ${flags[*]} dry_run no_check " == *" $flag "* ]] ||
      die "there is no flag $1; the perlhf command goes after --, and" \
        "--help lists the flags"
    if [[ "$1" == *=* ]]; then
      value="${1#*=}"
    elif [[ "${!flag}" == true || "${!flag}" == false ]]; then
      value=true
    else
      die "--$flag needs a value: --$flag=VALUE"
    fi
    case "${!flag},$value" in
      true,true | true,false | false,true | false,false) ;;
      true,* | false,*) die "--$flag is true or false, not '$value'" ;;
    esac
    printf -v "$flag" '%s' "$value"
    shift
  done
}

exclude() { # FLAG OTHER: dies if both are given.
  local each given=()
  for each; do
    [[ -z "${!each}" || "${!each}" == false ]] || given+=("--$each")
  done
  ((${#given[@]} < 2)) ||
    die "${given[0]} and ${given[1]} exclude each other: give one of them"
}

# require NAME ...: dies unless these flags, or their variables, are given.
require() {
  local flag
  for flag; do
    [[ -n "${!flag}" ]] ||
      die "--$flag is missing (or set" \
        "PERLHF_$(tr '[:lower:]' '[:upper:]' <<<"$flag")); --help says more"
  done
}

# Google Cloud and Kubernetes refuse other names, at different times.
require_name() {
  require name
  [[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name=$name is not a name: lower-case letters, digits and dashes," \
      "a letter first, at most 40"
}

require_number() { # NAME ...
  local flag
  for flag; do
    [[ "${!flag}" =~ ^[0-9]+$ ]] ||
      die "--$flag=${!flag} is not a whole number"
  done
}

require_slices() { # The number of them.
  [[ "$num_slices" =~ ^[1-9][0-9]*$ ]] ||
    die "--num_slices=$num_slices is not a number of slices, from 1"
}

require_command() {
  [[ "${command[0]-}" == perlhf && ${#command[@]} -gt 1 ]] ||
    die "after -- comes the command of every host:" \
      "-- perlhf train_reward --gin_file=..."
  [[ " ${on_hosts[*]} " == *" ${command[1]} "* ]] ||
    die "perlhf ${command[1]} does not run on hosts; these commands do:" \
      "${on_hosts[*]}"
}

# check_command FLAG: has perlhf check the command here, where nothing has been
# rented yet, for the devices that FLAG says. Sets `inputs` and `written`.
check_command() {
  local words=() line output status=0
  if "$no_check"; then
    note "the command is not checked"
    guess_written
    return
  fi
  [[ -x .venv/bin/perlhf ]] ||
    die "there is no .venv/bin/perlhf to check the command with: run" \
      "launch/setup_venv.sh, or give --no_check"
  while IFS= read -r line; do
    words+=("$line")
  done < <(environment cpu)
  words+=(.venv/bin/perlhf "${command[@]:1}" --check "$1")
  note "checked by: $(quote "${words[@]}")"
  output="$(env "${words[@]}")" || status=$?
  ((status == 0)) ||
    die "nothing was started: the command did not pass its check, see above" \
      "(exit code $status; --no_check leaves the check out)"
  while IFS= read -r line; do
    [[ -z "$line" ]] || note "$line"
    case "$line" in
      'reads: '*) inputs+=("${line#reads: }") ;;
      'writes: '*) written+=("${line#writes: }") ;;
    esac
  done <<<"$output"
}

# Where perlhf cannot be asked: what the command's words say that it writes.
guess_written() {
  local word
  for word in "${command[@]:1}"; do
    case "${command[1]} $word" in
      *' --gin.MODEL_DIR='* | *' --gin.OUTPUT='* | *' --output='* | \
        'evaluate --checkpoint='* | 'evaluate --gin.CHECKPOINT_PATH='*)
        written+=("$(tr -d ' \042\047' <<<"${word#*=}")")
        ;;
    esac
  done
}

# require_bucket HINT: dies if the command reads what the hosts have not, or
# writes to their disks.
require_bucket() {
  local path
  for path in ${inputs[@]+"${inputs[@]}"}; do
    [[ "$path" == gs://* ]] ||
      die "the command reads $path, which is on this machine and not on the" \
        "hosts: copy it into a bucket, and name it there, gs://..."
  done
  for path in ${written[@]+"${written[@]}"}; do
    [[ "$path" == gs://* ]] ||
      die "the command writes to $path, on a disk that is deleted with its" \
        "host: write to a bucket, gs://...${1-}"
  done
}

# keep_output PYTHON: has the hosts copy what they print into `log_dir`; without
# one into MODEL_DIR, or beside the file that the command writes.
keep_output() {
  local path="${written[0]-}"
  if [[ -z "$log_dir" && "$path" == gs://* ]]; then
    case "$path" in
      *.json | *.jsonl) path="${path%/*}" ;;
    esac
    log_dir="${path%%/checkpoints/*}"
    log_dir="${log_dir%/}/logs"
  fi
  [[ -z "$log_dir" || "$log_dir" == gs://* ]] ||
    die "--log_dir=$log_dir is not in a bucket, gs://..."
  [[ -z "$log_dir" ]] || logging=("$1" launch/host_log.py "$log_dir")
}

# quote WORD ...: one line that a shell reads back as these words.
quote() {
  local word line="" escape="'\\''"
  for word; do
    if [[ "$word" == *"'"* && "$word" != *[\"\$\`\\!]* ]]; then
      word="\"$word\""
    elif [[ ! "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'${word//"'"/$escape}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# run COMMAND ...: prints a command, and runs it unless --dry_run.
run() {
  if "$dry_run"; then
    quote "$@"
  else
    printf '\n$ %s\n' "$(quote "$@")" >&2
    "$@"
  fi
}

note() {
  if "$dry_run"; then
    echo "# $*"
  else
    echo "$(basename "$0"): $*" >&2
  fi
}

# environment PLATFORMS: what perlhf finds in its environment. A list of
# platforms makes a missing accelerator an error, where JAX alone would go on
# on the CPU.
environment() {
  echo "JAX_PLATFORMS=$1"
  echo TF_CPP_MIN_LOG_LEVEL=3
  [[ -z "$data_dir" ]] || echo "PERLHF_DATA_DIR=$data_dir"
  [[ -z "$cache_dir" ]] || echo "PERLHF_CACHE_DIR=$cache_dir"
}

# in_environment PLATFORMS WORD ...: a shell line that runs WORD ... so.
in_environment() {
  local words=(env) line
  while IFS= read -r line; do
    words+=("$line")
  done < <(environment "$1")
  quote "${words[@]}" "${@:2}"
}

# on_host DIRECTORY PLATFORMS FLAG ...: what ssh runs on a host. A run that has
# lost its connection still holds the accelerator: it is told to save and stop,
# and run.lock is free when it has. nohup, because a machine that shuts down
# sends SIGHUP right after the SIGTERM on which perlhf saves.
on_host() {
  echo "cd $(quote "$1") && { touch run.lock; fuser -s -k -TERM run.lock;" \
    "exec nohup flock --no-fork run.lock" \
    "$(in_environment "$2" ${logging[@]+"${logging[@]}"} .venv/bin/perlhf \
      "${command[@]:1}" "${@:3}"); }"
}

topology_row() { # NAME: its line of tpu_topologies.txt
  local table
  table="$(dirname "${BASH_SOURCE[0]}")"
  table+=/../perlhf_jax/training/tpu_topologies.txt
  [[ ! "$1" =~ ^([0-9]+)x(.+)$ ]] ||
    die "--topology=$1 is for perlhf plan; here write" \
      "--topology=${BASH_REMATCH[2]} --num_slices=${BASH_REMATCH[1]}"
  awk -v name="$1" '$1 == name || $2 == name { print; found = 1 }
    END { exit !found }' "$table" ||
    die "--topology=$1 is not known; there are:" \
      "$(awk '!/^#/ { printf "%s%s", separator, $1; separator = ", " }' \
        "$table")"
}

require_gke() { # TOPOLOGY ACCELERATOR HOSTS
  [[ "$2" != - ]] ||
    die "GKE has no $1: launch/tpu_vm.sh rents it from Cloud TPU"
  ((num_slices == 1 || $3 > 1)) ||
    die "GKE joins slices of several hosts only, and $1 has one: use larger" \
      "slices, or one slice"
}

# name_slices NAME: as perlhf names so many of them.
name_slices() {
  ((num_slices == 1)) || printf '%sx' "$num_slices"
  printf '%s\n' "$1"
}

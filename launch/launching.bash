# shellcheck shell=bash
# What the launchers share: flags, --help, --dry_run, and commands printed as
# they could be typed. It is sourced; bash 3.2, which macOS has, is enough.

# The launcher's own: the names of its flags, and two that are read here.
flags=()
name=""
data_dir=""

dry_run=false
command=()

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
      *) die "'$1' is no flag; the perlhf command goes after --" ;;
    esac
    flag="${1#--}"
    flag="${flag%%=*}"
    flag="${flag//-/_}"
    [[ " ${flags[*]} dry_run " == *" $flag "* ]] ||
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

require_command() {
  [[ "${command[0]-}" == perlhf && ${#command[@]} -gt 1 ]] ||
    die "after -- comes the command of every host:" \
      "-- perlhf train_reward --gin_file=..."
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
    "$(in_environment "$2" .venv/bin/perlhf "${command[@]:1}" "${@:3}"); }"
}

topology_row() { # NAME: its line of tpu_topologies.txt
  local table
  table="$(dirname "${BASH_SOURCE[0]}")/tpu_topologies.txt"
  awk -v name="$1" '$1 == name || $2 == name { print; found = 1 }
    END { exit !found }' "$table" ||
    die "--topology=$1 is not known; there are:" \
      "$(awk '!/^#/ { printf "%s%s", separator, $1; separator = ", " }' \
        "$table")"
}

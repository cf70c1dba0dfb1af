#!/usr/bin/env bash
# Makes .venv at the top of this checkout and installs perlhf_jax into it, with
# the versions of constraints.txt. Where that has been done before, it returns
# at once. The other scripts call it.
#
#   launch/setup_venv.sh [EXTRA ...]     for example: launch/setup_venv.sh test
#   PYTHON=/path/to/python3.12 launch/setup_venv.sh
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
# Written before the environment and after it: what lies between is half-made.
started="$venv/perlhf_started"
finished="$venv/perlhf_finished"

die() {
  echo "setup_venv: error: $*" >&2
  exit 1
}

is_supported() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# The pinned versions are tested on Python 3.11 and 3.12. A newer Python is used
# only if PYTHON asks for it.
is_tested() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
    2>/dev/null
}

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    is_supported "$PYTHON" ||
      die "PYTHON=$PYTHON is not a Python 3.11 or newer"
    echo "$PYTHON"
    return
  fi
  for candidate in python3 python3.12 python3.11; do
    if is_tested "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.11 or 3.12 found (python3 is" \
    "$(python3 --version 2>/dev/null || echo missing));" \
    "install one, or name it: PYTHON=/path/to/python3.12 $0"
}

version_of() {
  "$1" -c 'import sys; print(*sys.version_info[:2], sep=".")'
}

python=""
if [[ -n "${PYTHON:-}" ]]; then
  python="$(find_python)"
fi

# An environment knows its own path, so a moved or copied one is made anew.
if [[ -e "$venv" ]]; then
  [[ -e "$started" ]] ||
    die "$venv was not made by this script: move it away, or delete it"
  if [[ ! -e "$finished" || "$(head -n 1 "$started")" != "$root" ]] ||
    [[ -n "$python" &&
      "$(version_of "$python")" != "$(tail -n 1 "$started")" ]]; then
    echo "Removing .venv: it is incomplete, moved, or for another Python." >&2
    rm -rf "$venv"
  fi
fi

# Extras add up: the demo after the tests needs no second installation.
extras="$(printf '%s\n' "$@")"
if [[ -e "$finished" ]]; then
  extras+=$'\n'"$(tail -n +2 "$finished")"
fi
extras="$(sort -u <<<"$extras" | sed '/^$/d')"
wanted="$(cat "$root/setup.py" "$root/constraints.txt" | cksum)"
wanted+="${extras:+$'\n'$extras}"

if [[ -e "$finished" && "$(<"$finished")" == "$wanted" ]]; then
  exit 0
fi

if [[ ! -e "$venv" ]]; then
  python="${python:-$(find_python)}"
  mkdir "$venv"
  printf '%s\n' "$root" "$(version_of "$python")" >"$started"
  "$python" -m venv "$venv" ||
    die "$python cannot make an environment (on Debian: apt install" \
      "python3-venv)"
fi

rm -f "$finished"
echo "Installing into .venv; the first time takes a few minutes." >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --constraint "$root/constraints.txt" \
  --editable "$root${extras:+[${extras//$'\n'/,}]}" ||
  die "pip failed, see above; the next run starts over"
printf '%s\n' "$wanted" >"$finished"

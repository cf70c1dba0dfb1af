#!/usr/bin/env bash
# Runs lint and tests on the CPU, in .venv, which it makes first if need be.
#
#   launch/run_tests.sh [--coverage] [arguments of pytest]
#   launch/run_tests.sh tests/objectives -k pairwise -n 0
#
# --coverage also prints which lines of the package were run, by the tests or by
# processes that they start. With it, the whole suite has to run 92% of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/setup_venv.sh test

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Few processes, for each imports TensorFlow. Compiled programs are kept in
# .pytest_cache: the first run takes longer than later ones. One file stays in one
# process, so that a file's fixtures are made once, and files are begun in the
# order that tests/conftest.py gives them, the longest first.
pytest=(-m pytest -n auto --maxprocesses 4 --dist loadfile
  --no-loadscope-reorder)
if [[ "${1:-}" != --coverage ]]; then
  exec .venv/bin/python "${pytest[@]}" "$@"
fi

shift
least=0
[[ $# != 0 ]] || least=92
.venv/bin/coverage erase
status=0
.venv/bin/coverage run "${pytest[@]}" "$@" || status=$?
.venv/bin/coverage combine --quiet
.venv/bin/coverage report --fail-under="$least" || exit
exit "$status"

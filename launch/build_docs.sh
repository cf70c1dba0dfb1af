#!/usr/bin/env bash
# Builds the pages of docs/ and the API reference, in .venv, which it makes first
# if need be. A warning is an error. Open build/docs/index.html afterwards.
#
#   launch/build_docs.sh [arguments of sphinx-build]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/setup_venv.sh docs

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
exec .venv/bin/sphinx-build --fail-on-warning --keep-going --builder html \
  docs build/docs "$@"

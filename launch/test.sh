#!/usr/bin/env bash
# Installs iterinf with what its tests need, and runs them all; with --quick those that
# are not marked slow, in three minutes.
# Two processes share the files, in their order: those with the fewest tests, last
# otherwise, take longest. Arguments go to pytest, e.g.
# launch/test.sh --quick tests/test_inference.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} == --quick ]]; then
  shift
  set -- -m "not slow" "$@"
fi
extras='[test]'
source launch/install.sh
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

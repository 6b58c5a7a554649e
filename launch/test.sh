#!/usr/bin/env bash
# Installs iterinf with its test requirements and runs all tests; with --quick only those
# not marked slow, in three minutes. Other arguments are passed to pytest, e.g.
#   launch/test.sh --quick tests/test_inference.py
# Two processes share the test files in their listed order: by default, xdist would put
# the files with the fewest tests last, and those take longest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} == --quick ]]; then
  shift
  set -- -m "not slow" "$@"
fi
extras='[test]'
source launch/install.sh
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

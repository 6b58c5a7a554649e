#!/usr/bin/env bash
# Installs iterinf with what its tests need, and runs them all.
# Two processes share the files, in their order: those with the fewest tests, last
# otherwise, take longest. Arguments go to pytest, e.g.
# launch/test.sh -m "not slow" tests/test_inference.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras='[test]'
source launch/install.sh
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

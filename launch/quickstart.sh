#!/usr/bin/env bash
# Installs iterinf and runs the whole experiment on the embedded `streets` data.
# Extra flags are passed through, e.g.
#   launch/quickstart.sh --config.seed=1 --workdir=runs/seed1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=
source launch/install.sh
exec "$python" -m iterinf.main \
  --config=configs/quickstart.py --workdir=runs/quickstart "$@"

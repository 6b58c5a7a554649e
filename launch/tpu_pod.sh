#!/usr/bin/env bash
# Runs one experiment on all chips of a TPU pod slice, one process per host.
#
#   launch/tpu_pod.sh NAME ZONE CHECKOUT --config=configs/camvid_fcn8.py \
#       --workdir=SHARED_FOLDER/fcn8 --config.dtype=bfloat16 [FLAGS]
#
# NAME and ZONE identify the TPU VM; CHECKOUT and the workdir must be in a folder that
# every host has mounted. If a slice is preempted, create it again and rerun the command.
set -euo pipefail

(($# > 3)) || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
name=$1 zone=$2 checkout=$3
printf -v flags ' %q' "${@:4}"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  cd $(printf %q "$checkout") &&
  python3 -m pip install --quiet 'jax[tpu]' -e . &&
  python3 -m iterinf.main --config.processes.coordinator=auto$flags"

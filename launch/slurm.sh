#!/usr/bin/env bash
# Runs one experiment on the GPUs of several hosts under SLURM, one process per GPU.
#
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 launch/slurm.sh \
#       --config=configs/camvid_fcn8.py --workdir=SHARED_FOLDER/fcn8 [FLAGS]
#
# Run it in a checkout with an active environment. Before its time limit the job saves a
# checkpoint, and it requeues itself until the results are complete.
#SBATCH --job-name=iterinf
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -euo pipefail

workdir=
for flag in "$@"; do
  [[ $flag == --workdir=* ]] && workdir=${flag#--workdir=}
done
[[ -n $workdir ]] || { echo "slurm.sh: --workdir=FOLDER is missing" >&2; exit 2; }

srun --kill-on-bad-exit=1 python -m iterinf.main --config.processes.coordinator=auto "$@"
[[ -e $workdir/results/table.json ]] || scontrol requeue "$SLURM_JOB_ID"

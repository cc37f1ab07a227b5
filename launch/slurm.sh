#!/usr/bin/env bash
# Train on a SLURM cluster, one process per node, which takes all devices of its node:
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 launch/slurm.sh \
#       --config vitl16_in1k --run /shared/vitl16 --set data.path=/shared/train
# The job is asked to stop 5 minutes before its time is up (or when it is preempted), saves, and is
# put into the queue again until the run has finished. Exit codes: dinojax --help.
#SBATCH --job-name=dinojax
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dinojax-%j.log
set -euo pipefail
DINOJAX="${DINOJAX:-dinojax}"

echo "job $SLURM_JOB_ID on ${SLURM_JOB_NODELIST:-?}, start ${SLURM_RESTART_COUNT:-0}"
status=0
# shellcheck disable=SC2086  # DINOJAX may be several words
srun --kill-on-bad-exit=0 --ntasks-per-node=1 $DINOJAX train "$@" --cluster slurm \
    --set expect.hosts="$SLURM_JOB_NUM_NODES" || status=$?
case "$status" in
    75 | 77)
        echo "exit code $status: back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
        ;;
esac
exit "$status"

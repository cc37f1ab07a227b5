#!/usr/bin/env bash
# Train on a Cloud TPU pod slice that exists, one process per worker VM:
#   TPU=my-pod ZONE=us-east5-a bash launch/tpu_pod.sh \
#       --config vitl16_in1k --run /mnt/shared/vitl16 --set data.path=/mnt/shared/train
# RUN must be storage that all workers mount at the same path. Arguments with spaces are kept whole.
# SETUP is run on every worker before, such as "source ~/venv/bin/activate".
set -euo pipefail
: "${TPU:?set TPU to the name of the TPU VM}" "${ZONE:?set ZONE to its zone}"
SETUP="${SETUP:-true}" DINOJAX="${DINOJAX:-dinojax}"

words=""
for word in "$@"; do
    words+=" $(printf '%q' "$word")"
done
command="$SETUP && $DINOJAX train$words --cluster auto --set expect.platform=tpu"
echo "on every worker of $TPU: $command"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} \
    --worker=all --command="$command"

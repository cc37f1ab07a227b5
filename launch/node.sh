#!/usr/bin/env bash
# Train on this machine and start again what hung or lost a process (exit code 77), RESTARTS times
# at most. One process takes all devices. Arguments are those of `dinojax train`:
#   bash launch/node.sh --config vitl16_in1k --run runs/vitl16 --set data.path=/data/train
# PROCESSES=2 DEVICES=4 tries a run of several processes out, each with simulated CPU devices.
set -euo pipefail
RESTARTS="${RESTARTS:-10}" PROCESSES="${PROCESSES:-1}" DEVICES="${DEVICES:-1}"
read -r -a dinojax <<< "${DINOJAX:-dinojax}"
pids=()
trap '[ "${#pids[@]}" -eq 0 ] || kill -TERM "${pids[@]}" 2> /dev/null || true' TERM INT

# Wait for one process, also when a signal to this script interrupts the wait.
ended() {
    local code=0
    wait "$1" || code=$?
    while [ "$code" -gt 128 ] && kill -0 "$1" 2> /dev/null; do
        code=0
        wait "$1" || code=$?
    done
    return "$code"
}

# All processes once; the exit code is the largest of theirs.
attempt() {
    local index code status=0
    pids=()
    for ((index = 0; index < PROCESSES; index++)); do
        place=()
        if [ "$PROCESSES" -gt 1 ]; then
            place=(--coordinator "localhost:${PORT:-8476}" --num-processes "$PROCESSES" --process-id "$index")
        fi
        "${dinojax[@]}" train "$@" ${place[@]+"${place[@]}"} &
        pids+=("$!")
    done
    for index in "${!pids[@]}"; do
        code=0
        ended "${pids[$index]}" || code=$?
        [ "$code" -le "$status" ] || status="$code"
    done
    return "$status"
}

if [ "$PROCESSES" -gt 1 ]; then
    export JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES"
    export NPROC=$((4 * PROCESSES * DEVICES)) # threads: with fewer, collectives can wait for ever
fi
for ((try = 1; ; try++)); do
    status=0
    attempt "$@" || status=$?
    if [ "$status" -ne 77 ] || [ "$try" -gt "$RESTARTS" ]; then
        exit "$status"
    fi
    echo "exit code 77: restart $try of $RESTARTS" >&2
done

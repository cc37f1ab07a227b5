#!/usr/bin/env bash
# Train the tiny recipe on this machine, from nothing but Python: environment, training, pictures.
# Arguments are passed on, for example:  bash launch/quickstart.sh --set num_steps=400
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

make_env "$ROOT/.venv" demo
cd "$ROOT"
# On CPUs, glibc returns the step's buffers (182 MB) to the system after every step, and the system
# clears them again for the next one: a quarter of the time. These settings keep them.
export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000
.venv/bin/dinojax train --config configs/tiny.py --run runs/quickstart "$@"
echo "done in ${SECONDS} s. What it learned is above; everything else is in runs/quickstart:"
find runs/quickstart -maxdepth 2 -type f -not -path '*/checkpoints/*' | sort

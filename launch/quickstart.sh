#!/usr/bin/env bash
# Train the tiny recipe on this machine, from nothing but Python: environment, training, pictures.
# Arguments are passed on, for example:  bash launch/quickstart.sh --set num_steps=400
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

make_env "$ROOT/.venv" demo
cd "$ROOT"
.venv/bin/dinojax train --config configs/tiny.py --run runs/quickstart "$@"
echo "done in ${SECONDS} s. What it learned is above; everything else is in runs/quickstart:"
find runs/quickstart -maxdepth 2 -type f -not -path '*/checkpoints/*' | sort

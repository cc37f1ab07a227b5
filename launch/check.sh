#!/usr/bin/env bash
# Format, lint and types. ruff does not read setup.cfg, so its options are here.
# `bash launch/check.sh --fix` formats instead of complaining. PYTHON: one with the test extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"

if [ "${1:-}" = --fix ]; then
    "$PYTHON" -m ruff format --line-length 100 .
    "$PYTHON" -m ruff check --line-length 100 --select E,F,I,UP,B --fix .
else
    "$PYTHON" -m ruff format --line-length 100 --check .
    "$PYTHON" -m ruff check --line-length 100 --select E,F,I,UP,B .
fi
"$PYTHON" -m mypy dinojax

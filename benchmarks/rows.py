"""The one form of a benchmark's result: a JSON line that can be compared with any other."""

import json
import subprocess

import jax
import numpy as np


def row(
    *, name: str, config: dict, value, unit: str, baseline=None, ratio=None, equal=None, **rest
):
    """Print one JSON line.

    ratio: ours over the baseline, above 1 is better. equal: whether the outputs agree.
    """
    content = {
        "name": name,
        "config": config,
        "value": value,
        "unit": unit,
        "baseline": baseline,
        "ratio": ratio,
        "equal": equal,
        **rest,
        "commit": commit(),
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
    }
    print(json.dumps(content), flush=True)


def commit() -> str | None:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None

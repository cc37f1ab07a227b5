"""Bytes that the contrastive loss and its gradient need on a device, as the compiler plans them.

Run: python -m benchmarks.contrastive_memory [--pairs N] [--width E], on eight simulated devices;
no array is made. One line of JSON per strategy: bytes beside arguments and results, and what share
that is of a device's part of the plain matrix of logits, float32 [pairs / devices, pairs].
"""

import argparse
import json
import os
from typing import NamedTuple

DEVICES = 8

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from dinojax.losses.contrastive import contrastive_loss  # noqa: E402
from dinojax.sharding import mesh  # noqa: E402


class Peak(NamedTuple):
    temporary: int  # bytes on one device
    share: float  # of the plain matrix


def peak(strategy: str, pairs: int, width: int) -> Peak:
    """Of loss and gradients of both features and of the scale."""
    layout = mesh.make(strategy, DEVICES)
    rows = jax.ShapeDtypeStruct((pairs, width), jnp.float32, sharding=layout.sharding("image"))
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.sharding())
    loss = jax.value_and_grad(lambda *args: contrastive_loss(*args)[0], (0, 1, 2))
    with mesh.use(layout):
        compiled = jax.jit(loss).lower(rows, rows, scale).compile()
    temporary = int(compiled.memory_analysis().temp_size_in_bytes)
    return Peak(temporary, temporary / (4 * pairs * pairs // DEVICES))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=2048)
    args = parser.parse_args(argv)
    for strategy in ("dp", "fsdp", "hsdp", "fsdp_tp"):
        found = peak(strategy, args.pairs, args.width)
        row = {"name": f"contrastive_memory/{strategy}", "pairs": args.pairs, "width": args.width}
        print(json.dumps({**row, "value": found.temporary, "unit": "bytes", "share": found.share}))


if __name__ == "__main__":
    main()

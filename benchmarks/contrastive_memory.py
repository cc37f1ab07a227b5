"""Bytes that a loss of pairs and its gradient need on a device, as the compiler plans them.

Run: python -m benchmarks.contrastive_memory [--pairs N] [--width E], on eight simulated devices;
no array is made. One line of JSON per loss and strategy: bytes beside arguments and results, and
what share that is of a device's part of the plain matrix of logits, float32 [pairs / devices,
pairs].
"""

import argparse
import itertools
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
from dinojax.losses.sigmoid import sigmoid_loss  # noqa: E402
from dinojax.sharding import mesh  # noqa: E402

# Loss -> function and how many scalars it takes beside features.
LOSSES = {"contrastive": (contrastive_loss, 1), "sigmoid": (sigmoid_loss, 2)}


class Peak(NamedTuple):
    temporary: int  # bytes on one device
    share: float  # of the plain matrix


def peak(loss: str, strategy: str, pairs: int, width: int) -> Peak:
    """Of a loss of LOSSES and gradients of both features and of its scalars."""
    function, num_scalars = LOSSES[loss]
    layout = mesh.make(strategy, DEVICES)
    rows = jax.ShapeDtypeStruct((pairs, width), jnp.float32, sharding=layout.sharding("image"))
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=layout.sharding())
    arguments = rows, rows, *[scale] * num_scalars
    whole = jax.value_and_grad(lambda *args: function(*args)[0], range(len(arguments)))
    with mesh.use(layout):
        compiled = jax.jit(whole).lower(*arguments).compile()
    temporary = int(compiled.memory_analysis().temp_size_in_bytes)
    return Peak(temporary, temporary / (4 * pairs * pairs // DEVICES))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=2048)
    args = parser.parse_args(argv)
    for loss, strategy in itertools.product(LOSSES, ("dp", "fsdp", "hsdp", "fsdp_tp")):
        found = peak(loss, strategy, args.pairs, args.width)
        name = f"contrastive_memory/{loss}/{strategy}"
        row = {"name": name, "pairs": args.pairs, "width": args.width}
        print(json.dumps({**row, "value": found.temporary, "unit": "bytes", "share": found.share}))


if __name__ == "__main__":
    main()

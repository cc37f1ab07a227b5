"""What losses of pairs share: blocks of texts, and devices that each have their own images' rows.

A block holds the same share of every device's texts, so that only a block is ever gathered. On a
mesh `on_devices` gives a function the rows of one device and the names of the device axes that the
rows are spread over; without one the names are none and everything is on one device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dinojax.sharding import mesh

BLOCK_BYTES = 2**23  # of one block of logits of a device, or of the texts gathered for it


def num_blocks(num_rows: int, width: int, devices: int, limit: int | None = None) -> int:
    """Blocks of a device's `num_rows` texts, a divisor, so that one stays within the limit.

    limit: bytes of the logits [rows, rows of a block x devices] and of the texts gathered for
    them, None = BLOCK_BYTES. A block has one text of each device at least.
    """
    limit = BLOCK_BYTES if limit is None else limit
    row = 4 * devices * max(num_rows, width)  # bytes, for one text of every device
    fitting = (p for p in range(1, num_rows + 1) if num_rows % p == 0)
    return next((p for p in fitting if num_rows // p * row <= limit), num_rows)


def on_devices(function: Callable, rows: tuple, *whole, gives: tuple[str, ...]) -> Any:
    """function(device axes, *rows, *whole) on every device with its own rows of a batch."""
    layout = mesh.active()
    if layout is None:
        return function((), *rows, *whole)
    axes = tuple(axis for axis in layout.data_axes if layout.mesh.shape[axis] > 1)
    specs = {"rows": layout.rows, "all": PartitionSpec()}
    return jax.shard_map(
        functools.partial(function, axes),
        mesh=layout.mesh,
        in_specs=(layout.rows,) * len(rows) + (PartitionSpec(),) * len(whole),
        out_specs=tuple(specs[name] for name in gives),
        check_vma=False,
    )(*rows, *whole)


def dot(axes: str, *operands):
    return jnp.einsum(axes, *operands, precision="highest")


def own(images_BE, texts_BE):
    """Cosine of every pair."""
    return jnp.sum(images_BE * texts_BE, axis=1)


def slack(x):
    """A sum over channels in another order is the same up to this."""
    return 16 * jnp.finfo(x.dtype).eps * jnp.abs(x)


# -- of a device among those along `axes`, which may be none --------------------------------------


def size(axes) -> int:
    return jax.lax.axis_size(axes) if axes else 1


def gathered(axes, x):
    return jax.lax.all_gather(x, axes, axis=0, tiled=True) if axes else x


def scattered(axes, x):
    """The sum over devices of the rows that this device has gathered to others."""
    return jax.lax.psum_scatter(x, axes, scatter_dimension=0, tiled=True) if axes else x

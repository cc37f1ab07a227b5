"""What a number must beat: the same evaluation of random weights, and of pixels without a network.

k-NN of raw pixels or of a random network is far from chance on many data; a checkpoint that is not
above both has learned nothing that the evaluation shows (or is not the checkpoint one thinks).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval.contract import Evaluation, Measured
from dinojax.eval.network import Network, parsed
from dinojax.eval.row import Row
from dinojax.models.networks import Networks
from dinojax.models.params import abstract_params, init_params
from dinojax.sharding.mesh import Layout

SEED = 7133  # of the random weights
CELLS = 16  # a side of the small image that is the cls of pixels


def random_params(backbone: Any, layout: Layout) -> dict:
    """Parameters of a backbone as before the first step, on the devices of a layout."""
    networks = Networks(backbone, None, None)
    like = abstract_params(networks, layout)

    def init(key):
        boxed = init_params(networks, key)
        return jax.tree.map(lambda _, leaf: getattr(leaf, "value", leaf), like, boxed)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(SEED))["backbone"]


def raw_pixels(patch_size: int) -> Network:
    """A patch is its own normalised pixels; cls is the image made small, as means of 16 x 16 cells.

    What is asked for of a block is the same for every block; registers it has not got.
    """

    def embed(params, images_BHWC):
        batch, height, width, channels = images_BHWC.shape
        grid = height // patch_size, width // patch_size
        cut = images_BHWC[:, : grid[0] * patch_size, : grid[1] * patch_size]
        cells = cut.reshape(batch, grid[0], patch_size, grid[1], patch_size, channels)
        patches = cells.swapaxes(2, 3).reshape(batch, grid[0] * grid[1], -1)
        down, right = (_means(side) for side in (height, width))
        small = jnp.einsum("rh,bhwc,sw->brsc", down, images_BHWC, right).reshape(batch, -1)
        return small, patches.mean(axis=1), patches

    def forward(names):
        def outputs(params, images_BHWC):
            cls, mean, patches = embed(params, images_BHWC)
            kinds = {"cls": cls, "mean": mean, "patches": patches}
            wanted = parsed(names, depth=1_000_000)
            if lacking := [name for name in names if wanted[name][0] not in kinds]:
                raise ValueError(f"{', '.join(lacking)}: pixels have no registers.")
            return {name: kinds[wanted[name][0]] for name in names}

        return outputs

    return Network(embed, {}, forward)


def _means(side: int) -> np.ndarray:
    """[CELLS, side]: of a row of pixels the means of cells; some pixels twice where it is short."""
    starts = np.arange(CELLS) * side // CELLS
    ends = np.maximum((np.arange(CELLS) + 1) * side // CELLS, starts + 1)
    places = np.arange(side)[None]
    inside = (places >= starts[:, None]) & (places < ends[:, None])
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def compared(
    row: Row,
    evaluation: Evaluation,
    measured: Measured,
    *,
    column: str,
    networks: Mapping[str, Network],
    interval: tuple[float, float] | None,
) -> dict[str, dict[str, Any]]:
    """Name of a baseline -> {"value", "above"} of the row's main column.

    above: whether the worse end of the interval (or, without one, the value) is better than the
    baseline's. Empty for a row that has no better and worse.
    """
    found = {}
    for name, network in networks.items() if row.better else ():
        value = float(evaluation.measure(network).values.get(column, math.nan))
        ours = measured.values[column]
        ours = ours if interval is None else min(interval, key=lambda end: row.better * end)
        found[name] = {"value": value, "above": bool(row.better * (ours - value) > 0)}
    return found


def told(row: Row, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each baseline."""
    for name, one in found.items():
        verdict = "above" if one["above"] else "NOT above"
        yield f"{verdict} {name} ({row.shown(one['value'])})"

"""Block masks with an exact number of hidden patches, drawn on the device with static shapes.

Blocks as in BEiT (arXiv:2106.08254) and iBOT (arXiv:2111.07832). As in the DINOv3 reference
implementation (arXiv:2508.10104), what the blocks leave is filled with single random patches, so
that each masked crop hides exactly its share and every array has a size known in advance.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

NUM_TRIES = 10  # candidates for each block; if none fits, the blocks are finished


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Masks of one group of crops, each of side x side patches."""

    side: int  # patches
    num_rows: int  # global crops of a group, V times G
    rate: float  # share of the rows that are masked
    ratio: tuple[float, float]  # share of patches hidden: a ladder over the masked rows
    min_block: int  # patches
    aspect: tuple[float, float]  # of a block, drawn log-uniformly
    roll: bool  # shift each mask circularly

    @property
    def counts(self) -> tuple[int, ...]:
        """Hidden patches of each masked row, before the rows are shuffled."""
        return mask_counts(self.num_rows, self.side**2, rate=self.rate, ratio=self.ratio)

    @property
    def num_masked(self) -> int:
        """M, hidden patches of a group: the same in every group and step."""
        return sum(self.counts)

    @property
    def max_block(self) -> int:
        """Patches of the largest block: half the grid, in whole rows."""
        return self.side // 2 * self.side


def mask_counts(
    num_rows: int, num_patches: int, *, rate: float, ratio: tuple[float, float]
) -> tuple[int, ...]:
    """Hidden patches of each masked row of a group; int(num_rows * rate) rows are masked.

    The range of ratios is cut into as many bins as there are masked rows; a row takes the upper
    edge of its bin. The reference implementation has them from torch.linspace in float32, where one
    rounding decides between two counts, so these are its values to the last bit (torch 2.13).
    """
    num = int(num_rows * rate)
    edges = np.float32(num_patches) * _linspace(*ratio, num)[1:]
    return tuple(int(edge) for edge in edges)


def _linspace(low: float, high: float, num: int) -> np.ndarray:
    """The edges [num + 1] of `num` bins as torch.linspace gives them, float32.

    Each is counted from the nearer end, with one rounding of low + step * i: in float64 the product
    is exact.
    """
    first, last = np.float32(low), np.float32(high)
    step = np.float64((last - first) / np.float32(max(num, 1)))
    i = np.arange(num + 1)
    edges = np.where(i < (num + 1) // 2, first + step * i, last - step * (num - i))
    return edges.astype(np.float32)


def group_masks(key: jax.Array, spec: MaskSpec) -> jax.Array:
    """Masks bool [R, P] of the crops of one group; true = hidden; random rows are masked."""
    counts, num_patches = spec.counts, spec.side**2
    num = len(counts)
    keys = jax.random.split(key, num + 1)
    draws = jax.random.uniform(keys[num], (spec.num_rows + num * (num_patches + 2),))
    order_R, draws = jnp.argsort(draws[: spec.num_rows]), draws[spec.num_rows :]
    masks = jnp.zeros((spec.num_rows, num_patches), bool)
    if counts:
        fill = functools.partial(exact_mask, spec=spec)
        masked = jax.vmap(fill)(keys[:num], draws.reshape(num, -1), jnp.array(counts))
        masks = masks.at[:num].set(masked.reshape(num, -1))
    return masks[order_R]


def exact_mask(key: jax.Array, draws: jax.Array, count: jax.Array, spec: MaskSpec) -> jax.Array:
    """A mask bool [side, side] with exactly `count` hidden patches.

    key: of the blocks. draws: a uniform number for each patch, then two for the circular shift.
    """
    mask = fill_up(draws[:-2], blocks(key, count, spec), count)
    if spec.roll:
        mask = jnp.roll(mask, jnp.floor(draws[-2:] * spec.side).astype(jnp.int32), axis=(0, 1))
    return mask


def blocks(key: jax.Array, count: jax.Array, spec: MaskSpec) -> jax.Array:
    """Random rectangles, bool [side, side], that hide at most `count` patches.

    One turn of the loop draws all tries of a block and takes the first that fits, so a batch of
    masks needs as many turns as the mask with the most blocks.
    """

    def unfinished(state):
        _, mask, fits = state
        return fits & (jnp.sum(mask) < count)

    def add_block(state):
        turn, mask, _ = state
        room = jnp.minimum(count - jnp.sum(mask), spec.max_block)
        draws_T4 = jax.random.uniform(jax.random.fold_in(key, turn), (NUM_TRIES, 4))
        rows_TH, columns_TW, inside_T = _candidates(draws_T4, room, spec)
        blocks_THW = rows_TH[:, :, None] & columns_TW[:, None, :]
        new_T = jnp.sum(blocks_THW & ~mask[None], axis=(1, 2))
        fits_T = inside_T & (new_T > 0) & (new_T <= room)
        first, fits = jnp.argmax(fits_T), jnp.any(fits_T)
        block = rows_TH[first][:, None] & columns_TW[first][None, :]
        return turn + 1, mask | (block & fits), fits

    # Under shard_map a loop must start out as device-dependent as its key makes it, hence a false
    # value that comes from the key: unsigned words are not negative.
    no = jax.random.key_data(key).ravel()[0] < 0
    start = (jnp.int32(0), jnp.broadcast_to(no, (spec.side, spec.side)), ~no)
    return jax.lax.while_loop(unfinished, add_block, start)[1]


def _candidates(draws_T4: jax.Array, room: jax.Array, spec: MaskSpec):
    """Rectangles from uniform draws: rows bool [T, side], columns bool [T, side], valid bool [T].

    The area is uniform between min_block and the room, also where the room is the smaller.
    """
    area_T = spec.min_block + draws_T4[:, 0] * (room - spec.min_block).astype(jnp.float32)
    low, high = math.log(spec.aspect[0]), math.log(spec.aspect[1])
    aspect_T = jnp.exp(low + draws_T4[:, 1] * (high - low))

    def span(length_T, draw_T):
        length_T = jnp.round(length_T).astype(jnp.int32)
        places_T = spec.side - length_T + 1
        start_T = jnp.minimum(jnp.floor(draw_T * places_T).astype(jnp.int32), places_T - 1)
        offset_TS = jnp.arange(spec.side)[None, :] - start_T[:, None]
        return (offset_TS >= 0) & (offset_TS < length_T[:, None]), length_T < spec.side

    rows_TH, short_T = span(jnp.sqrt(area_T * aspect_T), draws_T4[:, 2])
    columns_TW, narrow_T = span(jnp.sqrt(area_T / aspect_T), draws_T4[:, 3])
    return rows_TH, columns_TW, short_T & narrow_T


def fill_up(draws_P: jax.Array, mask_HW: jax.Array, count: jax.Array) -> jax.Array:
    """Hide further patches, those of the smallest draws, until exactly `count` are hidden."""
    mask_P = mask_HW.reshape(-1)
    scores_P = jnp.where(mask_P, 2.0, draws_P)
    # Ranks, not a threshold: float32 draws repeat, and a tie would hide one patch too many.
    rank_P = jnp.argsort(jnp.argsort(scores_P))
    return (mask_P | (rank_P < count - jnp.sum(mask_P))).reshape(mask_HW.shape)


def mask_indices(masks_RP: jax.Array, *, num_masked: int) -> tuple[jax.Array, jax.Array]:
    """Positions int32 [M] of the hidden patches in the flattened rows, ascending, and weights [M].

    num_masked: M, which must be the number of hidden patches. The weight of a patch is 1 over the
    number of hidden patches of its row.
    """
    masked_M = jnp.nonzero(masks_RP.reshape(-1), size=num_masked)[0].astype(jnp.int32)
    counts_R = jnp.sum(masks_RP, axis=1).astype(jnp.float32)
    return masked_M, 1.0 / counts_R[masked_M // masks_RP.shape[1]]

"""Masks: exact counts, and the distribution recorded from the reference implementation."""

import functools
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.augment import masks
from dinojax.augment.masks import MaskSpec, mask_counts

RECORDED = json.loads(
    (pathlib.Path(__file__).parent.parent / "recorded" / "masks.json").read_text()
)


QUICK = {"xla_backend_optimization_level": 0}  # a quarter of the compile time


def mask_spec(**changes):
    base = dict(
        side=14,
        num_rows=8,
        rate=0.5,
        ratio=(0.1, 0.5),
        min_block=4,
        aspect=(0.3, 1 / 0.3),
        roll=False,
    )
    return MaskSpec(**{**base, **changes})


@functools.cache
def many(spec, num):
    """Block phase and finished masks of one count; a group of one masked row."""

    def one(key, draws, count):
        return masks.blocks(key, count, spec), masks.exact_mask(key, draws, count, spec)

    run = jax.jit(jax.vmap(one, in_axes=(0, 0, None)), compiler_options=QUICK)

    def run_count(count):
        keys = jax.random.split(jax.random.key(count), num)
        draws = np.random.default_rng(count).random((num, spec.side**2 + 2), dtype=np.float32)
        return [np.asarray(x) for x in run(keys, draws, jnp.int32(count))]

    return run_count


@pytest.mark.parametrize(
    ("rows", "patches", "total"),
    [(128, 196, 3771), (32, 256, 1274), (16, 1024, 2659), (16, 2304, 5987), (16, 196, 507)]
    + [(80, 256, 3104), (48, 256, 1883)],
)
def test_total_count_of_a_group_is_the_references(rows, patches, total):
    assert sum(mask_counts(rows, patches, rate=0.5, ratio=(0.1, 0.5))) == total


@pytest.mark.parametrize("name", list(RECORDED["counts"]))
def test_ladder_of_counts_equals_the_recorded_one(name):
    side, rows = (int(v) for v in name.split("/"))
    got = mask_counts(rows, side**2, rate=0.5, ratio=(0.1, 0.5))
    assert list(got) == RECORDED["counts"][name]


# Every group of up to 256 images (two crops each, half of them masked), every grid up to 64 x 64.
IMAGES, SIDES, RATIOS = range(1, 257), range(1, 65), ((0.1, 0.5), (0.2, 0.9))


@functools.cache
def ladders():
    """Counts of masked rows by (ratio, images, side)."""
    return {
        (ratio, images, side): mask_counts(2 * images, side**2, rate=0.5, ratio=ratio)
        for ratio in RATIOS
        for images in IMAGES
        for side in SIDES
    }


def test_every_ladder_has_the_recorded_digest():
    """Of those that the next test compares with torch, for where torch is not installed."""
    counts = np.concatenate([np.array(row, "<i4") for row in ladders().values()])
    assert hashlib.sha256(counts.tobytes()).hexdigest()[:16] == RECORDED["ladders"]


def test_every_ladder_equals_that_of_torch():
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    patches_S = torch.tensor([side**2 for side in SIDES], dtype=torch.float32)
    for ratio in RATIOS:
        for images in IMAGES:
            edges_V = torch.linspace(*ratio, images + 1)[1:]
            want_SV = (patches_S[:, None] * edges_V[None]).int().tolist()
            got_SV = [list(ladders()[ratio, images, side]) for side in SIDES]
            assert got_SV == want_SV, (ratio, images)


def test_largest_block_is_half_the_grid_in_whole_rows():
    assert [mask_spec(side=s).max_block for s in (14, 16, 32, 48, 15)] == [98, 128, 512, 1152, 105]


@pytest.mark.parametrize("name", list(RECORDED["stats"]))
def test_masks_are_distributed_as_recorded(name):
    side, count = (int(v) for v in name.split("/"))
    want, num = RECORDED["stats"][name], RECORDED["num_draws"]
    by_blocks, got = many(mask_spec(side=side), num)(count)
    assert np.all(got.sum((1, 2)) == count)

    short = count - by_blocks.sum((1, 2))  # patches left to single ones, 0 mostly
    got_hist = np.bincount(np.minimum(short, 3), minlength=4) / num
    want_hist = np.array(want["short_hist"]) / num
    error = np.sqrt(np.maximum(want_hist * (1 - want_hist), 1 / num) * 2 / num)
    assert np.all(np.abs(got_hist - want_hist) < 4 * error)

    pairs = {"h": got[:, :, 1:] & got[:, :, :-1], "v": got[:, 1:] & got[:, :-1]}
    for axis, both in pairs.items():
        per_mask = both.mean((1, 2))
        error = per_mask.std() * np.sqrt(2 / num)
        assert abs(per_mask.mean() - want["pairs"][axis]) < 4 * error

    position = np.array(want["position"])
    error = np.sqrt(np.maximum(position * (1 - position), 1e-3) * 2 / num)
    assert np.abs((got.mean(0) - position) / error).max() < 4.5  # the largest of 196 or 256

    parts = np.array([num_components(m) for m in got[:1000]])
    error = parts.std() * np.sqrt(2 / 1000)
    assert abs(parts.mean() - want["components"]) < 4 * error


def reference_blocks(rng, count, spec):
    """The block generator as a plain loop: up to ten tries for each block."""
    side, mask = spec.side, np.zeros((spec.side, spec.side), bool)
    low, high = np.log(spec.aspect)
    while mask.sum() < count:
        room = min(count - mask.sum(), spec.max_block)
        for _ in range(10):
            area = spec.min_block + rng.random() * (room - spec.min_block)
            aspect = np.exp(rng.uniform(low, high))
            h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if h >= side or w >= side:
                continue
            top, left = rng.integers(0, side - h + 1), rng.integers(0, side - w + 1)
            block = np.zeros_like(mask)
            block[top : top + h, left : left + w] = True
            if 0 < (block & ~mask).sum() <= room:
                mask |= block
                break
        else:
            break
    return mask


@pytest.mark.parametrize(("side", "count", "aspect"), [(5, 20, (0.9, 1.1)), (5, 10, (0.05, 20.0))])
def test_blocks_are_distributed_as_a_plain_loops(side, count, aspect):
    """Cases the recorded numbers do not reach: more than half the grid, and very long blocks."""
    num, spec = 3000, mask_spec(side=side, aspect=aspect)
    rng = np.random.default_rng(0)
    got = many(spec, num)(count)[0]
    want = np.stack([reference_blocks(rng, count, spec) for _ in range(num)])
    for measure in (
        lambda m: m.sum((1, 2)),
        lambda m: m.sum((1, 2)) == count,
        lambda m: (m[:, 1:] & m[:, :-1]).mean((1, 2)),
        lambda m: m[:, 0].all(1) | m[:, -1].all(1),
        lambda m: m[:, 1:-1, 1:-1].mean((1, 2)),
    ):
        a, b = measure(got).astype(float), measure(want).astype(float)
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / num) + 1e-9


def num_components(mask):
    """4-connected parts, by filling them one after the other."""
    left, num = {(int(r), int(c)) for r, c in np.argwhere(mask)}, 0
    while left:
        num, stack = num + 1, [left.pop()]
        while stack:
            r, c = stack.pop()
            near = {(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)} & left
            left -= near
            stack += near
    return num


@functools.cache
def jitted_group(spec):
    return jax.jit(jax.vmap(lambda key: masks.group_masks(key, spec)), compiler_options=QUICK)


@pytest.mark.parametrize("side", [1, 4])
def test_groups_have_exactly_their_counts_on_the_smallest_grids(side):
    spec = mask_spec(side=side, num_rows=9)
    got = np.asarray(jitted_group(spec)(jax.random.split(jax.random.key(0), 2000)))
    counts = sorted(spec.counts + (0,) * (9 - len(spec.counts)))
    np.testing.assert_array_equal(np.sort(got.sum(2), axis=1), np.broadcast_to(counts, (2000, 9)))


def test_rows_are_shuffled_uniformly():
    spec, num = mask_spec(side=4, num_rows=9), 2000
    got = np.asarray(jitted_group(spec)(jax.random.split(jax.random.key(1), num)))
    often = (got.sum(2) == max(spec.counts)).mean(0)
    assert np.abs(often - 1 / 9).max() < 4.5 * np.sqrt(1 / 9 / num)


def test_no_row_is_masked_at_rate_zero():
    spec = mask_spec(side=2, rate=0.0)
    got = masks.group_masks(jax.random.key(0), spec)
    assert not np.any(got) and spec.num_masked == 0
    assert masks.mask_indices(got, num_masked=0)[0].shape == (0,)


@pytest.mark.slow
def test_roll_makes_all_positions_equally_likely():
    """Blocks avoid the corners; a circular shift of the same masks does not."""
    num, count = 1500, 58
    plain = many(mask_spec(side=14), RECORDED["num_draws"])(count)[1].mean(0)
    rolled = many(mask_spec(roll=True), num)(count)[1].mean(0)
    p = count / 196
    assert np.abs(rolled - p).max() < 4.5 * np.sqrt(p * (1 - p) / num) < np.abs(plain - p).max()


@pytest.mark.parametrize("name", list(RECORDED["collate"]))
def test_indices_and_weights_equal_the_recorded_ones(name):
    want = RECORDED["collate"][name]
    rows = np.zeros((want["rows"], want["patches"]), bool)
    rows.reshape(-1)[want["indices"]] = True
    indices = functools.partial(masks.mask_indices, num_masked=len(want["indices"]))
    got, weights = jax.jit(indices, compiler_options=QUICK)(rows)
    np.testing.assert_array_equal(got, want["indices"])
    np.testing.assert_allclose(weights, want["weights"], rtol=1e-6)
    assert abs(float(weights.sum()) - np.any(rows, axis=1).sum()) < 1e-4

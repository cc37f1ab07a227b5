"""Known answers: blobs, rings, uneven crowds, chains, exact totals, order and devices."""

import jax
import numpy as np
import pytest

from dinojax.curate.allocate import Tree, allocate, cut_of, sample
from dinojax.curate.assign import assign
from dinojax.curate.duplicates import alike, components, deduplicate
from dinojax.curate.hierarchy import Level, Settings, hierarchy
from dinojax.curate.kmeans import check_number, kmeans, lloyd
from dinojax.curate.pool import ArrayRows
from dinojax.curate.retrieve import by_cluster, by_sample
from dinojax.curate.similar import EDGE, near_pairs, num_blocks, unit
from dinojax.sharding import mesh


def edges_of(pairs):
    edges = np.zeros(len(pairs), EDGE)
    edges["row"], edges["other"] = np.array(pairs, np.int64).reshape(-1, 2).T
    return edges


def blobs(rng, num, clusters, width=4):
    centers = rng.normal(size=(clusters, width)) * 20
    labels = np.arange(num) % clusters
    return centers[labels] + rng.normal(size=(num, width)), labels


def test_blobs_are_told_apart_and_their_spread_is_that_of_the_truth():
    x, labels = blobs(np.random.default_rng(0), 400, 8)
    truth = np.stack([x[labels == k].mean(0) for k in range(8)])
    spread = ((x - truth[labels]) ** 2).sum()
    for seed in range(3):
        found = kmeans(ArrayRows(x), 8, seed=seed)
        ours = ((x - found.centers_KD[found.assignment]) ** 2).sum()
        assert ours <= 1.01 * spread
        assert len(set(zip(labels.tolist(), found.assignment.tolist(), strict=True))) == 8


def crowds(seed=0):
    """Two squares of equal area, of which one has a hundred times the points."""
    rng = np.random.default_rng(seed)
    dense, thin = rng.random((3000, 2)), rng.random((30, 2)) + [3, 0]
    return np.concatenate([dense, thin]), 3000


@pytest.mark.slow
def test_resampling_spreads_centres_over_what_there_is():
    x, dense = crowds()
    flat = kmeans(ArrayRows(x), 22, seed=0)
    settings = Settings(rounds=3, iterations=10)
    levels = hierarchy(ArrayRows(x), [Level(100, 10), Level(22, 3)], settings)
    tree = Tree(
        [level.assignment for level in levels], [100, 22], [level.distances for level in levels]
    )
    ratios = []
    for centers in (flat.centers_KD, levels[1].centers_KD):
        thin = int((centers[:, 0] > 2).sum())
        ratios.append((len(centers) - thin) / max(thin, 1))
    assert ratios[0] > 6  # the square root of 100 in theory, for many centres
    assert ratios[1] < 4
    chosen = sample(tree, 60, rng=np.random.default_rng(0))
    assert len(chosen) == len(set(chosen.tolist())) == 60
    assert (chosen >= dense).sum() > 10  # one of a hundred at random


@pytest.mark.slow
def test_rings_are_balanced_better_than_by_flat_k_means_and_by_chance():
    rng = np.random.default_rng(1)
    sizes = [2000, 40, 100, 50, 800]
    rings = np.repeat(np.arange(5), sizes)
    angle, radius = rng.random(len(rings)) * 2 * np.pi, 1 + rings + 0.2 * rng.random(len(rings))
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)

    def divergence(chosen):
        shares = np.bincount(rings[chosen], minlength=5) / len(chosen)
        kept = shares[shares > 0]
        return float((kept * np.log(5 * kept)).sum())

    def balanced(levels):
        assignments, distances = [x.assignment for x in levels], [x.distances for x in levels]
        tree = Tree(assignments, [len(x.centers_KD) for x in levels], distances)
        return sample(tree, 200, rng=np.random.default_rng(0))

    settings = Settings(rounds=3, iterations=10)
    flat = balanced(hierarchy(ArrayRows(x), [Level(40)], settings))
    whole = balanced(hierarchy(ArrayRows(x), [Level(150, 8), Level(40, 2)], settings))
    chance = rng.choice(len(x), 200, replace=False)
    assert divergence(whole) < divergence(flat) < divergence(chance)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_totals_are_exact_and_shares_differ_by_one(times):
    rng = np.random.default_rng(times)
    for _ in range(20):
        sizes = rng.integers(0, 30, rng.integers(1, 12))
        total = int(sizes.sum()) * times
        for target in (0, 1, len(sizes) - 1, len(sizes), max(total - 1, 0), total, total + 1):
            parts = allocate(sizes, target, times, rng)
            assert parts.sum() == min(target, total)
            assert (parts <= times * sizes).all() and (parts >= 0).all()
            free = parts[parts < times * sizes]
            assert not len(free) or parts.max() - free.min() <= 1


def test_the_examples_of_water_filling():
    assert cut_of(np.array([1, 2, 10, 100]), 20) == 8
    parts = allocate(np.array([1, 2, 10, 100]), 20, 1, np.random.default_rng(0))
    assert sorted(parts.tolist()) == [1, 2, 8, 9]
    rings = allocate(np.array([20000, 200, 1000, 500, 8000]), 1000, 1, np.random.default_rng(0))
    assert rings.tolist() == [200] * 5


@pytest.mark.slow
def test_ten_million_clusters_are_shared_out_in_seconds():
    sizes = np.random.default_rng(0).integers(0, 200, 10_000_000)
    assert allocate(sizes, 300_000_000, 1, np.random.default_rng(0)).sum() == 300_000_000


def test_empty_clusters_give_nothing_and_break_nothing():
    tree = Tree([np.array([0, 0, 2]), np.array([0, 1, 1])], [3, 3], [np.zeros(3), np.zeros(3)])
    assert sorted(sample(tree, 3, rng=np.random.default_rng(0)).tolist()) == [0, 1, 2]
    assert sample(tree, 0, rng=np.random.default_rng(0)).dtype == np.int64


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(ValueError, match="5 clusters of 4 rows"):
        check_number(5, 4)
    with pytest.raises(ValueError, match="level 2 has 8, level 1 4"):
        hierarchy(ArrayRows(np.zeros((9, 2))), [Level(4), Level(8)], Settings())


def test_an_empty_cluster_keeps_its_centre():
    x = np.array([[0.0, 0], [1, 0], [10, 0]])
    found = lloyd(ArrayRows(x), np.array([[0.0, 0], [100, 0]]), iterations=3)
    assert found.centers_KD[1].tolist() == [100, 0]


def test_assignments_and_means_are_those_of_float64():
    """Also where the nearest two centres are nearer to each other than float32 can tell."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 24)).astype(np.float16)
    centers = x[:50].astype(np.float64)
    centers = np.concatenate([centers, centers + 1e-9, centers[:10]])
    wide = x.astype(np.float64)
    differences = wide.astype(np.longdouble)[:, None] - centers
    exact = (differences**2).sum(-1)
    found = assign(ArrayRows(x), centers)
    assert found.decided > 600
    np.testing.assert_array_equal(found.assignment, exact.argmin(1))
    for cluster in range(len(centers)):
        own = wide[found.assignment == cluster]
        assert found.counts_K[cluster] == len(own)
        if len(own):
            np.testing.assert_allclose(found.means_KD[cluster], own.mean(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_change_no_bit(devices):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1500, 12)).astype(np.float16)
    one, many = (
        lloyd(ArrayRows(x), x[:20].astype(np.float64), iterations=5, layout=layout)
        for layout in (None, mesh.make("dp", devices))
    )
    np.testing.assert_array_equal(one.centers_KD, many.centers_KD)
    np.testing.assert_array_equal(one.assignment, many.assignment)
    pairs = [
        np.concatenate([e for _, e in near_pairs(rows, rows, 0.6, same=True, **options)])
        for rows in [ArrayRows(x)]
        for options in (
            {"blocks": range(num_blocks(rows)), "layout": None},
            {"blocks": range(num_blocks(rows)), "layout": mesh.make("dp", devices)},
        )
    ]
    assert len(pairs[0]) > 10
    np.testing.assert_array_equal(*pairs)


def test_a_chain_has_one_survivor_and_none_where_a_benchmark_is_in_it():
    edges = edges_of([(3, 1), (1, 7), (7, 9), (2, 4)])
    found = deduplicate(10, lambda: [edges], hits=np.array([], np.int64))
    assert found.kept.tolist() == [0, 1, 2, 5, 6, 8]
    clean = deduplicate(10, lambda: [edges], hits=np.array([9]))
    assert clean.kept.tolist() == [0, 2, 5, 6, 8]
    large = np.arange(10)
    largest = deduplicate(10, lambda: [edges], hits=np.array([], int), keep="largest", pixels=large)
    assert largest.kept.tolist() == [0, 4, 5, 6, 8, 9]
    assert largest.survivor.tolist() == [0, 9, 4, 9, 4, 5, 6, 9, 8, 9]


def test_components_do_not_depend_on_the_order_of_edges_and_match_a_slow_search():
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 300, (200, 2))
    root = list(range(300))
    for _ in range(300):
        for a, b in pairs:
            root[a] = root[b] = min(root[a], root[b])
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(pairs))
        parts = [edges_of(pairs[part]) for part in np.array_split(order, 7)]
        np.testing.assert_array_equal(components(300, lambda parts=parts: parts), root)
    chain = edges_of([(i, i + 1) for i in range(4999)])
    assert not components(5000, lambda: [chain[::-1]]).any()


def test_survivors_have_no_duplicates_among_them():
    rng = np.random.default_rng(0)
    x = unit(np.repeat(rng.normal(size=(60, 8)), 3, axis=0) + 0.05 * rng.normal(size=(180, 8)))

    def pairs(rows):
        rows = ArrayRows(rows)
        found = near_pairs(rows, rows, 0.98, blocks=range(num_blocks(rows)), same=True)
        return [edges for _, edges in found]

    found = deduplicate(180, lambda: pairs(x), hits=np.array([], int))
    assert 60 <= len(found.kept) < 120
    assert not len(np.concatenate(pairs(x[found.kept])))


def test_hashes_within_a_radius_are_paired_as_by_comparing_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 200, dtype=np.uint64)
    hashes[100:] = hashes[:100] ^ (np.uint64(1) << rng.integers(0, 64, 100).astype(np.uint64))
    hashes[50] = hashes[51]
    for radius in (0, 1, 3):
        found, cut = alike(hashes, radius)
        apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
        wanted = np.stack(np.nonzero(np.triu(apart <= radius, 1)), 1)
        pairs = np.unique(np.stack([found["row"], found["other"]], 1), axis=0)
        np.testing.assert_array_equal(pairs, wanted)
        assert cut == 0


def test_only_the_blob_of_the_seeds_is_retrieved():
    x, labels = blobs(np.random.default_rng(3), 300, 3, width=16)
    seeds = ArrayRows(x[labels == 1][:5] + 0.01)
    found = by_sample(seeds, ArrayRows(x), 8)
    assert (labels[found] == 1).all() and 8 <= len(found) <= 40
    clusters = kmeans(ArrayRows(x), 3, seed=0)
    options = {"seed": 0, "per_cluster": 50}
    found = by_cluster(seeds, clusters.centers_KD, clusters.assignment, **options)
    assert (labels[found] == 1).all() and len(found) == 50
    assert len(by_cluster(seeds, clusters.centers_KD, clusters.assignment, most=7, **options)) == 7
    three = ArrayRows(x[labels == 1][:3])
    assert not len(by_cluster(three, clusters.centers_KD, clusters.assignment, **options))
    four = ArrayRows(x[labels == 1][:4])
    assert len(by_cluster(four, clusters.centers_KD, clusters.assignment, **options)) == 50


@pytest.mark.slow
def test_a_hierarchy_that_was_stopped_anywhere_goes_on_to_the_same(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float16)
    levels, settings = [Level(30, 4), Level(6, 2)], Settings(rounds=2, iterations=4)
    whole = hierarchy(ArrayRows(x), levels, settings, folder=tmp_path / "whole")
    calls = {"left": 0}
    real = np.savez

    def stopping(*args, **kwargs):
        calls["left"] -= 1
        if calls["left"] < 0:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(np, "savez", stopping)
    for attempt in range(60):
        calls["left"] = 1 + attempt % 3
        try:
            found = hierarchy(ArrayRows(x), levels, settings, folder=tmp_path / "parts")
            break
        except KeyboardInterrupt:
            continue
    assert attempt > 3
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_array_equal(one.centers_KD, other.centers_KD)
        np.testing.assert_array_equal(one.assignment, other.assignment)


def test_x64_is_off_again():
    assign(ArrayRows(np.eye(4)), np.eye(4))
    assert not jax.config.jax_enable_x64

"""Health values against slow references, and at the two ends whose answers are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.train import health
from dinojax.viz.probe import drift


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def crops():
    rng = np.random.default_rng(0)
    cls, patches, prenorm = (rng.normal(size=(4, 2, *s)) for s in ((6,), (9, 6), (12, 6)))
    return cls, patches, 3.0 * prenorm


def test_patch_values_match_loops_over_pairs(crops):
    cls, patches, prenorm = crops
    found = health.image_health(*map(jnp.asarray, crops))
    for b in range(4):
        for g in range(2):
            p, c = unit(patches[b, g]), unit(cls[b, g])
            pairs = [p[i] @ p[j] for i in range(9) for j in range(9) if i != j]
            beside = [p[3 * r + x] @ p[3 * r + x + 1] for r in range(3) for x in range(2)]
            beside += [p[3 * r + x] @ p[3 * r + x + 3] for r in range(2) for x in range(3)]
            norms = np.linalg.norm(prenorm[b, g], axis=-1)
            want = {
                "cls_patch_cosine": np.mean(p @ c),
                "patch_cosine": np.mean(pairs),
                "locality": np.mean(beside) - np.mean(pairs),
                "cls_norm": norms[0],
                "patch_norm": norms[3:].mean(),  # cls, two registers, nine patches
                "patch_norm_max": norms[3:].max(),
            }
            for name, value in want.items():
                np.testing.assert_allclose(found[name][b, g], value, rtol=1e-4, atol=1e-6)


def test_patches_equal_to_cls_have_cosines_of_one_and_no_locality():
    cls = np.random.default_rng(1).normal(size=(1, 1, 5))
    patches = np.repeat(cls[:, :, None], 4, axis=2)
    found = health.image_health(*map(jnp.asarray, (cls, patches, patches)))
    for name, want in {"cls_patch_cosine": 1.0, "patch_cosine": 1.0, "locality": 0.0}.items():
        np.testing.assert_allclose(found[name], want, atol=1e-5)


def test_orthonormal_patches_have_cosine_zero_and_one_over_root_n_to_their_mean():
    patches = np.eye(4)[None, None]
    cls = 2.0 * patches.mean(axis=2)
    found = health.image_health(*map(jnp.asarray, (cls, patches, patches)))
    np.testing.assert_allclose(found["cls_patch_cosine"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(found["patch_cosine"], 0.0, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 7), (7, 20)])
def test_effective_rank_is_that_of_the_covariance(shape):
    values = np.random.default_rng(2).normal(size=shape) * np.linspace(1, 3, shape[1])
    rank, spread = health.spread(jnp.asarray(values))
    lengths = np.linalg.svd(values - values.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(rank, lengths.sum() ** 2 / (lengths**2).sum(), rtol=1e-4)
    u = unit(values)
    np.testing.assert_allclose(spread, np.mean(np.sum((u - u.mean(0)) ** 2, -1)), rtol=1e-4)


def test_equal_tokens_have_rank_one_and_no_spread():
    """Rounding alone would look like a healthy rank."""
    token = np.random.default_rng(3).normal(size=(1, 30)).astype(np.float32)
    noise = 1e-7 * np.random.default_rng(4).normal(size=(50, 30)).astype(np.float32)
    rank, spread = health.spread(jnp.asarray(token + noise))
    assert rank == 1.0 and abs(spread) < 1e-5


def seen_of(rows):
    """(entropy, largest, first, number of prototypes) of rows of probabilities."""
    logs = np.log(rows, where=rows > 0, out=np.zeros_like(rows))
    found = (-(rows * logs).sum(-1), rows.max(-1), rows.argmax(-1))
    return *(jnp.asarray(x) for x in found), rows.shape[-1]


def test_target_values_at_both_ends():
    teacher = lambda rows: health.teacher_health(  # noqa: E731
        {}, jnp.ones((4, 1, 3)), {"dino": seen_of(rows)}, group_size=2
    )
    sharp, flat = teacher(np.eye(8)[:4]), teacher(np.full((4, 8), 1 / 8))
    names = ("teacher_entropy/dino", "teacher_max/dino", "prototypes_used/dino")
    np.testing.assert_allclose([sharp[n] for n in names], [0.0, 1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose([flat[n] for n in names], [1.0, 0.125, 0.25], atol=1e-6)


def test_neighbors_are_sought_within_group_and_crop_number():
    cls = np.random.default_rng(6).normal(size=(8, 2, 5))
    cls[3, 1] = 2.0 * cls[2, 1]  # twins within a group
    cls[4, 0] = cls[3, 0]  # across groups: not seen
    u = unit(cls)
    distances = [
        [
            min(np.linalg.norm(u[i, g] - u[j, g]) for j in range(start, start + 4) if j != i)
            for i in range(start, start + 4)
            for g in range(2)
        ]
        for start in (0, 4)
    ]
    found = health.neighbors(jnp.asarray(cls), group_size=4)
    np.testing.assert_allclose(found["duplicates"], [2 / 8, 0], rtol=1e-6)
    for name, share in (("neighbor_distance", 0.5), ("neighbor_distance_p05", 0.05)):
        np.testing.assert_allclose(found[name], np.quantile(distances, share, axis=1), atol=1e-3)
    whole = health.teacher_health({}, jnp.asarray(cls), {}, group_size=4)
    for name, values in found.items():
        np.testing.assert_allclose(whole[name], np.mean(values), rtol=1e-5)


def test_relative_change_is_a_ratio_of_lengths():
    old, new = {"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}, {"a": 3.0 + jnp.ones(1)}
    new["b"] = old["b"]
    np.testing.assert_allclose(health.relative_change(new, old), 1 / 5, rtol=1e-6)


def test_drift_is_zero_for_turned_features_and_grows_with_noise():
    rng = np.random.default_rng(7)
    patches = rng.normal(size=(2, 9, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    small, large = (drift(patches, patches + s * rng.normal(size=patches.shape)) for s in (0.1, 1))
    assert drift(patches, 2.0 * patches @ turn) < 1e-6 < small < large

"""Losses and targets against slow numpy, the printed values of the reference, and properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.losses.dino import dino_loss
from dinojax.losses.gram import gram_loss, resize_patches
from dinojax.losses.ibot import ibot_loss
from dinojax.losses.koleo import koleo_loss
from dinojax.losses.sinkhorn import sinkhorn, softmax_targets, update_center


def wave(*shape, a=1.0, phase=0.1):
    """The inputs of the reference's printed values."""
    return (a * np.sin(0.37 * np.arange(np.prod(shape)) + phase)).reshape(shape).astype(np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slow_sinkhorn(logits, temperature, iterations):
    plan = np.exp(np.asarray(logits, np.float64) / temperature).T
    plan /= plan.sum()
    K, N = plan.shape
    for _ in range(iterations):
        plan /= plan.sum(1, keepdims=True) * K
        plan /= plan.sum(0, keepdims=True) * N
    return (plan * N).T


SINKHORN = jax.jit(sinkhorn, static_argnames="num_iterations")


# Targets


def test_sinkhorn_equals_the_reference():
    expected = [
        [0.088184, 0.160898, 0.236929, 0.268771, 0.245218],
        [0.360743, 0.300098, 0.190888, 0.099283, 0.048989],
        [0.285550, 0.221837, 0.179160, 0.155740, 0.157713],
        [0.066525, 0.117709, 0.192937, 0.275610, 0.347220],
    ]
    np.testing.assert_allclose(SINKHORN(wave(4, 5, a=0.1), 0.07), expected, atol=2e-6)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_sinkhorn_equals_slow_numpy(iterations):
    logits = normal(12, 8)
    ours = SINKHORN(logits, 0.3, num_iterations=iterations)
    np.testing.assert_allclose(ours, slow_sinkhorn(logits, 0.3, iterations), atol=2e-6)


def test_sinkhorn_permutes_with_samples_and_prototypes():
    logits, rng = normal(12, 8), np.random.default_rng(1)
    rows, columns = rng.permutation(12), rng.permutation(8)
    moved = SINKHORN(logits[rows][:, columns], 0.1)
    np.testing.assert_allclose(moved, SINKHORN(logits, 0.1)[rows][:, columns], atol=1e-6)


def test_sinkhorn_rows_sum_to_one_and_prototypes_balance():
    targets = np.asarray(SINKHORN(normal(12, 8), 0.1, num_iterations=300))
    np.testing.assert_allclose(targets.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(targets.sum(0), 12 / 8, rtol=1e-3)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_sinkhorn_survives_extreme_logits(size):
    logits = normal(12, 8) * size
    logits[3] -= 10 * size  # a sample whose every entry vanishes beside the others
    logits[:, 5] -= 10 * size  # a prototype nobody likes
    targets = np.asarray(SINKHORN(logits, 0.04))
    assert np.isfinite(targets).all()
    np.testing.assert_allclose(targets.sum(1), 1.0, atol=1e-5)


def test_sinkhorn_of_moderately_extreme_logits_is_exact():
    logits = normal(12, 8) * 3  # / 0.04 reaches about 170; float64 holds up to 709
    expected = slow_sinkhorn(logits, 0.04, 3)
    np.testing.assert_allclose(SINKHORN(logits, 0.04), expected, atol=2e-4)


def test_sinkhorn_has_no_gradient_and_widens_bfloat16():
    grad = jax.grad(lambda x: jnp.sum(sinkhorn(x, 0.1) ** 2))(normal(12, 8))
    assert not np.any(grad)
    assert sinkhorn(jnp.zeros((2, 3), jnp.bfloat16), 0.1).dtype == jnp.float32


def test_sinkhorn_without_iterations_is_an_error():
    with pytest.raises(ValueError, match="sinkhorn_iterations=0"):
        sinkhorn(normal(2, 3), 0.1, num_iterations=0)


def test_softmax_targets_and_the_center_follow_dinov2():
    logits, center = normal(2, 3, 5), normal(5, seed=1)
    targets = softmax_targets(logits, jnp.asarray(center), 0.2)
    np.testing.assert_allclose(targets, softmax((logits - center) / 0.2), atol=1e-6)
    moved = update_center(jnp.asarray(center), logits, 0.9)
    expected = 0.9 * center + 0.1 * logits.reshape(-1, 5).mean(0)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


# DINO and iBOT


def paper_targets():
    """Targets [3, 2, 5] of the reference's printed cross-entropies."""
    return np.asarray(SINKHORN(wave(6, 5, a=0.1, phase=0.3), 0.07)).reshape(2, 3, 5).swapaxes(0, 1)


def test_dino_loss_equals_the_reference():
    two = wave(2, 3, 5, a=0.2, phase=0.7).swapaxes(0, 1)
    four = wave(4, 3, 5, a=0.2, phase=0.9).swapaxes(0, 1)
    targets = paper_targets()
    every = dino_loss(two, targets, temperature=0.1, skip_same_crop=False)
    cross = dino_loss(two, targets, temperature=0.1, skip_same_crop=True)
    local = dino_loss(four, targets, temperature=0.1, skip_same_crop=False)
    np.testing.assert_allclose([every, cross, local], [1.616754, 1.664120, 1.665463], atol=2e-6)


@pytest.mark.parametrize("skip", [False, True])
def test_dino_loss_equals_slow_numpy_and_spares_the_targets(skip):
    logits, targets = normal(4, 3, 6), softmax(normal(4, 2, 6, seed=1))
    pairs = [(s, t) for s in range(3) for t in range(2) if not (skip and s == t)]
    log_probs = np.log(softmax(logits / 0.1))
    expected = np.mean([-(targets[:, t] * log_probs[:, s]).sum(-1) for s, t in pairs])

    def loss(logits, targets):
        return dino_loss(logits, targets, temperature=0.1, skip_same_crop=skip)

    value, (grad, no_grad) = jax.value_and_grad(loss, argnums=(0, 1))(logits, targets)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.any(grad) and not np.any(no_grad)


def test_dino_loss_without_a_pair_is_an_error():
    with pytest.raises(ValueError, match="skip_same_crop=True leaves no pair"):
        dino_loss(normal(2, 1, 3), normal(2, 1, 3), temperature=0.1, skip_same_crop=True)


def test_dino_and_ibot_of_enormous_logits_are_finite():
    logits, targets = normal(3, 2, 5) * 1e4, softmax(normal(3, 2, 5, seed=1))
    assert np.isfinite(dino_loss(logits, targets, temperature=0.1, skip_same_crop=True))
    rows, ones = logits[:, 0], jnp.ones(3)
    assert np.isfinite(ibot_loss(rows, targets[:, 0], ones, num_crops=2, temperature=0.1))


def test_ibot_loss_divides_by_all_crops_as_the_reference_does():
    logits, targets = wave(4, 5, a=0.2, phase=0.5), SINKHORN(wave(4, 5, a=0.1), 0.07)
    weights = jnp.array([1 / 3, 1 / 3, 1 / 3, 1])  # rows 1101, 0000, 0100
    loss = ibot_loss(logits, targets, weights, num_crops=3, temperature=0.1)
    np.testing.assert_allclose(loss, 1.021270, atol=2e-6)
    grad = jax.grad(lambda t: ibot_loss(logits, t, weights, num_crops=3, temperature=0.1))(targets)
    assert not np.any(grad)


# KoLeo


def slow_koleo(cls, neighbors):
    unit = cls / np.linalg.norm(cls, axis=-1, keepdims=True)
    terms = []
    for i, row in enumerate(unit):
        others = np.argsort([-np.inf if j == i else row @ unit[j] for j in range(len(unit))])
        for j in others[::-1][:neighbors]:
            terms.append(-np.log(np.linalg.norm(row - unit[j] + 1e-8) + 1e-8))
    return np.mean(terms)


def test_koleo_loss_equals_the_reference():
    cls = wave(1, 5, 3)
    np.testing.assert_allclose(koleo_loss(cls), 0.691610, atol=2e-6)
    np.testing.assert_allclose(koleo_loss(cls, num_neighbors=2), 0.270944, atol=2e-6)


def test_koleo_groups_do_not_see_each_other_and_average():
    cls = normal(3, 5, 4)
    expected = np.mean([slow_koleo(group, 2) for group in cls])
    np.testing.assert_allclose(koleo_loss(cls, num_neighbors=2), expected, rtol=1e-5)


def test_koleo_of_equal_and_of_zero_images_is_finite():
    cls = normal(1, 5, 4)
    cls[0, 3] = cls[0, 1]  # equal images
    value, grad = jax.jit(jax.value_and_grad(koleo_loss))(cls)
    assert np.isfinite(value) and np.isfinite(grad).all()
    np.testing.assert_array_equal(grad[0, 3], 0.0)  # nobody else's neighbour
    assert 0.01 < np.abs(grad).max() < 10.0  # 1e7 if the two did not cancel
    value, grad = jax.jit(jax.value_and_grad(koleo_loss))(np.zeros_like(cls))
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_koleo_gradient_reaches_the_neighbour():
    cls = np.array([[[1.0, 0.0], [0.8, 0.6], [-1.0, 0.1]]], np.float32)
    step = 1e-3 * np.eye(2, dtype=np.float32)[1]
    moved = [cls + sign * step * np.array([0, 1, 0])[None, :, None] for sign in (1, -1)]
    slope = (slow_koleo(moved[0][0], 1) - slow_koleo(moved[1][0], 1)) / 2e-3
    np.testing.assert_allclose(jax.grad(koleo_loss)(cls)[0, 1, 1], slope, rtol=1e-2)


@pytest.mark.parametrize("images, neighbors", [(1, 1), (3, 3), (3, 0)])
def test_koleo_needs_more_images_than_neighbours(images, neighbors):
    with pytest.raises(ValueError, match=f"koleo_neighbors={neighbors} .* groups of {images}"):
        koleo_loss(normal(2, images, 4), num_neighbors=neighbors)


# Gram


GRAM = {  # per image, over all
    "none": (0.620681, 0.627183),
    "both": (0.235727, 0.214758),
    "teacher": (0.653810, 0.644067),
}


@pytest.mark.parametrize("clip", GRAM)
def test_gram_loss_equals_the_reference(clip):
    student, teacher = wave(2, 4, 3), wave(2, 4, 3, phase=1.3)
    for per_image, expected in zip((True, False), GRAM[clip], strict=True):
        ours = gram_loss(student, teacher, normalize=True, per_image=per_image, clip=clip)
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_gram_loss_of_raw_and_of_selected_patches():
    student, teacher = wave(2, 4, 3), wave(2, 4, 3, phase=1.3)
    raw = gram_loss(student, teacher, normalize=False, per_image=True, clip="none")
    np.testing.assert_allclose(raw, 2.757865, rtol=1e-5)
    flat = [x.reshape(-1, 3) for x in (student, teacher)]
    joint = gram_loss(*flat, normalize=True, per_image=False, clip="none")
    np.testing.assert_allclose(joint, GRAM["none"][1], atol=2e-6)


def test_what_is_unlike_for_both_networks_costs_nothing_with_both_negative():
    """Unit patches with cosine -1 for the student, and -0.6 for the teacher."""
    student = np.array([[[1.0, 0.0], [-1.0, 0.0]]], np.float32)
    teacher = np.array([[[1.0, 0.0], [-0.6, 0.8]]], np.float32)
    assert gram_loss(student, teacher, clip="both_negative") == 0
    np.testing.assert_allclose(gram_loss(student, teacher, clip="teacher"), 2 / 4)
    # A student that finds them alike is drawn down in both.
    alike = np.array([[[1.0, 0.0], [0.8, 0.6]]], np.float32)
    for clip in ("teacher", "both_negative"):
        np.testing.assert_allclose(gram_loss(alike, teacher, clip=clip), 2 * 0.64 / 4, rtol=1e-6)
    # What only the student finds unlike still counts.
    found = gram_loss(student, alike, clip="both_negative")
    np.testing.assert_allclose(found, 2 * 1.8**2 / 4, rtol=1e-6)


def test_gram_gradient_spares_the_teacher_and_is_finite_at_zero():
    student, teacher = normal(1, 3, 4), normal(1, 3, 4, seed=1)
    student[0, 1] = 0.0
    grad, no_grad = jax.grad(gram_loss, argnums=(0, 1))(student, teacher)
    assert np.isfinite(grad).all() and np.any(grad) and not np.any(no_grad)


def test_gram_errors_name_the_choices():
    with pytest.raises(ValueError, match="gram.clip='student' is not one of none, both, teacher"):
        gram_loss(normal(1, 2, 3), normal(1, 2, 3), clip="student")
    with pytest.raises(ValueError, match="gram.per_image=True"):
        gram_loss(normal(2, 3), normal(2, 3), per_image=True)
    with pytest.raises(ValueError, match="gram.resize='nearest' is not one of"):
        resize_patches(normal(1, 4, 2), 1, method="nearest")
    with pytest.raises(ValueError, match="5 patches are not a square grid"):
        resize_patches(normal(1, 5, 2), 1)


def test_resized_patches_equal_the_reference():
    def resize(side, antialias):
        patches = wave(1, side * side, 1)
        return np.ravel(resize_patches(patches, 2, method="bicubic", antialias=antialias))

    np.testing.assert_allclose(
        resize(4, False), [0.714736, 0.841433, -0.632031, -0.859476], atol=2e-6
    )
    np.testing.assert_allclose(
        resize(4, True), [0.600221, 0.598886, -0.408382, -0.622337], atol=2e-6
    )
    np.testing.assert_allclose(
        resize(3, False), [0.356660, 0.777011, 0.767522, 0.340819], atol=2e-6
    )


def test_resizing_to_the_same_side_changes_nothing():
    patches = normal(2, 9, 4)
    np.testing.assert_array_equal(resize_patches(patches, 3, antialias=True), patches)

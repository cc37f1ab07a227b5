"""Segmentation: counts of pixels, windows, schedules, cuts, and heads that learn colours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.eval import (
    adamw,
    dense_schedules,
    linear_head,
    ridge,
    segmentation_losses,
    segmentation_metrics,
    segmentation_transforms,
    sliding,
)
from dinojax.eval.segmentation_metrics import IGNORE


def blocks(seed, num=8, side=32, patch=8, num_classes=3):
    """(labels [N, side, side] of squares of pixels, mean colours of patches [N, h, w, 3])."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, num_classes, (num, side // patch, side // patch))
    labels = cells.repeat(patch, axis=1).repeat(patch, axis=2)
    return labels, np.eye(3, dtype=np.float32)[cells] * 2 + 0.5


def test_miou_counts_pixels_of_all_images_and_leaves_ignored_ones_out():
    truth, predicted = np.array([[0, 0], [1, IGNORE]]), np.array([[0, 1], [1, 0]])
    counts = segmentation_metrics.confusion(predicted, truth, 3)
    assert segmentation_metrics.areas(counts)["union"].tolist() == [2, 2, 0]
    found = segmentation_metrics.segmentation_metrics(counts)
    assert found["miou"] == pytest.approx(0.5)  # the third class is in neither and does not count
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_metrics_do_not_depend_on_the_order_of_images_and_know_their_limits():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 5, 9, 7))
    parts = [segmentation_metrics.confusion(p, t, 4) for p, t in zip(predicted, truth, strict=True)]
    whole = segmentation_metrics.confusion(predicted, truth, 4)
    assert np.array_equal(sum(parts[::-1]), whole)
    perfect = segmentation_metrics.confusion(truth, truth, 4)
    assert segmentation_metrics.segmentation_metrics(perfect)["miou"] == 1
    nothing = segmentation_metrics.confusion(predicted, np.full_like(truth, IGNORE), 4)
    assert all(np.isnan(v) for v in segmentation_metrics.segmentation_metrics(nothing).values())
    with pytest.raises(ValueError, match="run from 0 to 3; with 2 classes"):
        segmentation_metrics.confusion(predicted, truth, 2)


def test_zero_can_mean_unlabelled():
    assert segmentation_metrics.reduce_zero(np.array([0, 1, 150, 255], np.uint8)).tolist() == [
        IGNORE, 0, 149, IGNORE,
    ]  # fmt: skip


def test_ignored_pixels_count_in_the_denominator_of_the_loss():
    logits = jnp.zeros((1, 1, 4, 2))
    labels = jnp.array([[[0, 1, IGNORE, IGNORE]]])
    loss = segmentation_losses.cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(np.log(2) / 2)
    over_valid = segmentation_losses.cross_entropy(logits, labels, over_valid=True)
    assert float(over_valid) == pytest.approx(np.log(2))


def test_dice_of_the_target_itself_is_zero():
    targets = jnp.eye(3)[jnp.array([[[0, 1], [2, 2]]])]
    assert float(segmentation_losses.dice(targets, targets)) == pytest.approx(0)
    assert float(segmentation_losses.dice(1 - targets, targets)) > 0.5


@pytest.mark.parametrize(
    "side, starts", [(512, [0]), (513, [0, 1]), (683, [0, 171]), (1024, [0, 341, 512])]
)
def test_windows_end_where_the_image_ends(side, starts):
    places = sliding.windows(512, side, crop=512, stride=341)
    assert [left for _, left, _, _ in places] == starts


def test_a_pointwise_model_is_the_same_in_windows_and_in_one_pass():
    image = np.random.default_rng(0).normal(size=(20, 33, 3))
    weights = np.random.default_rng(1).normal(size=(3, 4))
    for batch_size in (1, 3, 50):
        windows = sliding.slide(
            lambda x: x @ weights, image, crop=16, stride=11, batch_size=batch_size
        )
        assert np.allclose(windows, image @ weights)


def test_mirrored_views_are_turned_back():
    logits = np.random.default_rng(0).normal(size=(4, 6, 3))
    one = sliding.probabilities(logits, (8, 12))
    other = sliding.probabilities(logits[:, ::-1], (8, 12), flipped=True)
    assert np.allclose(one, other, atol=1e-6)
    assert np.array_equal(sliding.merged([one, other]), np.argmax(one, axis=-1))


def test_the_rate_of_the_released_recipe():
    cycle = dense_schedules.OneCycle(1e-3, 40_000, 1500, 1e-6, float("inf"), beta1=0.9)
    want = {0: 1.0e-9, 750: 4.906255e-4, 1499: 9.618833e-4, 1500: 9.965296e-4, 39_999: 0.0}
    assert {step: cycle.rate(step) for step in want} == pytest.approx(want, rel=1e-6)
    nyu = dense_schedules.OneCycle(3e-4, 38_400, 12_800)
    want = {0: 3.0e-7, 6400: 1.402519e-4, 12_800: 2.249924e-4, 38_399: 1.2e-8}
    assert {step: nyu.rate(step) for step in want} == pytest.approx(want, rel=1e-6)
    assert [nyu.momentum(step) for step in (0, 12_799, 12_800, 38_400)] == [0, 0, 0.85, 0.95]


def test_an_image_of_one_class_is_cut_after_ten_refusals():
    transform = segmentation_transforms.TrainTransform(16, 16, lambda x: 4 * x - 2)
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    rng = np.random.default_rng(3)
    pixels, labels = transform(image, np.zeros((20, 24), np.uint8), rng)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.float32
    assert set(np.unique(labels)) <= {0, IGNORE}
    again = transform(image, np.zeros((20, 24), np.uint8), np.random.default_rng(3))
    assert np.array_equal(again[0], pixels)


def test_views_below_full_size_are_rounded_up_to_32():
    assert segmentation_transforms.view_sizes(30, 47, 24, (0.9, 1.0)) == [(32, 50), (24, 38)]


def test_a_ridge_learns_coloured_blocks_whatever_the_order_and_batches():
    labels, patches = blocks(0)
    whole = ridge.fit_classes([(patches, labels)], 3)
    order = np.random.default_rng(1).permutation(len(labels))
    parts = [(patches[rows], labels[rows]) for rows in np.array_split(order, 3)]
    assert np.allclose(ridge.fit_classes(parts, 3), whole, atol=1e-6)
    unseen, colours = blocks(5)
    classes, known = ridge.patch_targets(unseen, colours.shape[1:3], 3)
    assert known.all() and np.array_equal(np.argmax(colours @ whole, axis=-1), classes)


def test_a_ridge_on_constant_and_on_zero_features_has_numbers():
    labels, patches = blocks(0)
    assert np.isfinite(ridge.fit_classes([(np.ones_like(patches), labels)], 3)).all()
    assert not ridge.fit_classes([(np.zeros_like(patches), labels)], 3).any()


def test_patches_of_mostly_ignored_pixels_are_not_known():
    labels = np.full((1, 4, 4), IGNORE)
    labels[0, :2, :2] = [[1, 1], [2, IGNORE]]
    labels[0, :2, 2:] = [[1, IGNORE], [IGNORE, IGNORE]]
    classes, known = ridge.patch_targets(labels, (2, 2), 3)
    assert known[0].tolist() == [[True, False], [False, False]] and classes[0, 0, 0] == 1


def trained(features, labels, rates, steps=60):
    bank = linear_head.new_bank(jax.random.key(0), num_heads=len(rates), width=3, outputs=3)
    settings = adamw.Settings(
        jnp.asarray(rates), jnp.full(len(rates), 1e-3), jnp.full(len(rates), 0.9)
    )

    @jax.jit
    def step(bank):
        loss_of = lambda logits: segmentation_losses.cross_entropy(logits, labels)  # noqa: E731
        return linear_head.update(bank, features, loss_of, settings)

    for _ in range(steps):
        bank, losses_J = step(bank)
    return bank, losses_J


@pytest.mark.slow
def test_heads_of_a_bank_learn_as_they_would_alone():
    labels, patches = blocks(0)
    cells = jnp.asarray(labels[:, ::8, ::8])
    bank, losses_J = trained(jnp.asarray(patches), cells, (0.05, 1e-4))
    alone, _ = trained(jnp.asarray(patches), cells, (0.05,))
    assert np.allclose(bank.params["kernel"][0], alone.params["kernel"][0], atol=1e-6)
    assert losses_J[0] < 0.1 < losses_J[1]
    guessed = jnp.argmax(linear_head.evaluated(bank, jnp.asarray(patches))[0], axis=-1)
    assert np.array_equal(guessed, cells)

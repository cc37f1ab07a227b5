"""Parts of heads by hand and against slow numpy: sampling, boxes, matching, positions, windows."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.ops.interpolate import resize_corners
from dinojax.tasks import boxes, coco_ap, detection_losses, mask_losses, sines
from dinojax.tasks.assignment import assign
from dinojax.tasks.deformable import centres, sample
from dinojax.tasks.detr import _apart
from dinojax.tasks.mask2former import Prediction, semantic
from dinojax.tasks.proposals import at_level, propose
from dinojax.tasks.windows import windowed


def test_places_in_the_middle_of_entries_read_these_and_places_outside_nothing():
    sizes = ((2, 3), (1, 2))
    values = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)
    places = centres(sizes)[:, None, None, None].astype(np.float32)  # [S, A, L, P, 2]
    places = np.broadcast_to(places, (8, 1, 2, 1, 2))[None]
    weights = np.zeros((1, 8, 1, 2, 1), np.float32)
    weights[:, :6, :, 0], weights[:, 6:, :, 1] = 1, 1  # each reads its own level
    assert sample(values, sizes, places, weights).ravel().tolist() == list(range(8))
    assert not np.any(sample(values, sizes, places + 3, weights))


def test_uniform_weights_between_four_entries_are_their_mean():
    values = np.array([1.0, 2, 3, 6], np.float32).reshape(1, 4, 1, 1)
    middle = np.full((1, 1, 1, 1, 3, 2), 0.5, np.float32)
    weights = np.full((1, 1, 1, 1, 3), 1 / 3, np.float32)
    assert sample(values, ((2, 2),), middle, weights).item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("second", "expected"),
    [((0.5, 0.5, 1, 1), 1.0), ((1.5, 0.5, 1, 1), 0.0), ((2.5, 0.5, 1, 1), -1 / 3)],
)
def test_generalised_overlap_of_the_same_touching_and_distant_squares(second, expected):
    first = jnp.array([0.5, 0.5, 1, 1])
    assert boxes.giou(first, jnp.array(second)) == pytest.approx(expected)


def test_a_change_is_undone_but_for_the_tenth_that_sides_are_divided_by():
    box, target = jnp.array([10.0, 20, 1e6, 2e6]), jnp.array([3e5, 1e5, 3e6, 1e6])
    assert np.allclose(boxes.moved(box, boxes.deltas(box, target)), target, rtol=1e-5)


def one_object(boxes, scores):
    found = len(scores)
    truth = coco_ap.Truth(
        np.zeros(1), np.zeros(1), np.array([[0.0, 0, 100, 92]]), np.array([9200.0]), np.zeros(1)
    )
    rows = np.zeros(found), np.zeros(found), np.array(boxes, float), np.array(scores)
    return coco_ap.average_precision(truth, coco_ap.Detected(*rows), np.zeros(1)).summary()


def test_a_surer_wrong_box_halves_the_precision_up_to_the_overlap_of_the_right_one():
    """Overlap 0.92 is found at the nine thresholds up to 0.90, behind one that is wrong."""
    summary = one_object([(0, 0, 100, 100), (500, 500, 10, 10)], [0.5, 0.9])
    assert summary["ap"] == pytest.approx(0.45) and summary["ap50"] == pytest.approx(0.5)
    assert summary["ap_small"] == -1 and summary["ar1"] == 0 and summary["ar10"] == 0.9


def test_pairs_are_the_cheapest_of_all():
    costs = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    count = np.array([4, 2, 0], np.int32)
    found = np.asarray(jax.jit(assign)(costs, count))
    for cost, own, num in zip(costs, found, count, strict=True):
        best = min(
            itertools.permutations(range(5), int(num)),
            key=lambda queries: sum(cost[q, t] for t, q in enumerate(queries)),
        )
        assert own[:num].tolist() == list(best) and (own[num:] == -1).all()


def test_more_targets_than_queries_are_refused():
    with pytest.raises(Exception, match="3 targets for 2 queries"):
        jax.block_until_ready(assign(jnp.zeros((1, 2, 3)), jnp.array([3])))


@pytest.mark.slow
def test_what_pads_targets_changes_no_loss_and_no_gradient():
    rng = np.random.default_rng(0)
    logits, found = rng.normal(size=(1, 4, 3)), rng.uniform(0.2, 0.8, (1, 4, 4))

    def total(inputs, num):
        labels, wanted = np.zeros((1, num), np.int32), np.zeros((1, num, 4))
        labels[0, :2], wanted[0, :2] = (1, 2), ((0.3, 0.3, 0.2, 0.2), (0.6, 0.6, 0.3, 0.2))
        targets = detection_losses.Targets(labels, jnp.asarray(wanted), jnp.array([2]))
        layer = detection_losses.Found(*inputs)
        query = detection_losses.match(layer, targets)
        return detection_losses.total(detection_losses.losses(layer, targets, query))

    inputs = jnp.asarray(logits), jnp.asarray(found)
    (few, few_grads), (many, many_grads) = (
        jax.value_and_grad(lambda x, num=num: total(x, num))(inputs) for num in (2, 5)
    )
    assert float(few) == pytest.approx(float(many), rel=1e-6)
    for a, b in zip(few_grads, many_grads, strict=True):
        assert np.isfinite(b).all() and np.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_repeated_targets_are_copies_with_what_pads_behind():
    labels = np.array([[3, 4, 0], [5, 0, 0]], np.int32)
    places = np.broadcast_to(labels[..., None], (2, 3, 4)).astype(np.float32)
    found = detection_losses.repeated(
        detection_losses.Targets(labels, jnp.asarray(places), jnp.array([2, 1])), 2
    )
    assert found.count_B.tolist() == [4, 2]
    assert found.labels_BT[0, :4].tolist() == [3, 4, 3, 4]
    assert found.labels_BT[1, :2].tolist() == [5, 5]


def test_points_read_between_pixels_and_zeros_beyond():
    maps = np.array([[[1.0, 3], [5, 7]]], np.float32)
    points = np.array([[[0.5, 0.5], [0.25, 0.25], [0.0, 0.25]]], np.float32)
    assert mask_losses.at_points(maps, points).tolist() == [[4.0, 1.0, 0.5]]


def test_a_query_that_owns_all_pixels_gives_its_class_everywhere():
    classes = np.full((1, 3, 4), -9.0, np.float32)
    classes[0, 0, 1], classes[0, 1:, 3] = 9, 9  # the others claim nothing
    masks = np.full((1, 3, 2, 2), 9.0, np.float32)
    prediction = Prediction(jnp.asarray(classes), jnp.asarray(masks))
    scores = semantic(prediction, (4, 4))
    assert (np.argmax(scores, axis=-1) == 1).all()
    turned = Prediction(prediction.classes_BQK[:, ::-1], prediction.masks_BQhw[:, ::-1])
    assert np.allclose(semantic(turned, (4, 4)), scores, atol=1e-6)


def test_positions_are_sines_of_the_place_over_the_side():
    found = sines.of_map((2, 4), 8, jnp.float32)
    y, x = 2 * math.pi / (2 + 1e-6), 2 * math.pi * 3 / (4 + 1e-6)
    slow = [[math.sin(v), math.cos(v), math.sin(v / 100), math.cos(v / 100)] for v in (y, x)]
    assert np.allclose(found[0, 2], np.ravel(slow), atol=1e-5)


def test_groups_of_queries_do_not_see_each_other():
    apart = np.asarray(_apart(5, 2))[0, 0]
    assert not apart[:2, :2].any() and not apart[2:, 2:].any()
    assert apart[:2, 2:].all() and apart[2:, :2].all()


def test_proposals_lie_around_places_and_those_beyond_the_image_are_larger_than_it():
    hidden = np.zeros((1, 4, 4), bool)
    hidden[:, :, 3] = True  # the image ends before the last column
    levels = [jnp.ones((1, 8, 8, 2)), jnp.ones((1, 4, 4, 2))]
    memory, places, sizes = propose(levels, jnp.asarray(hidden), 16, 10.0)
    assert sizes.tolist() == [[48.0, 64.0]]
    first = np.asarray(places)[0]
    assert first[9].tolist() == [12.0, 12.0, 10.0, 10.0]  # second row and column of stride 8
    assert first[64 + 5].tolist() == [24.0, 24.0, 20.0, 20.0]
    beyond = (first == 64.0).all(axis=1)
    assert beyond.reshape(-1)[:64].reshape(8, 8)[:, 6:].all()
    assert not np.asarray(memory)[0][beyond].any() and np.asarray(memory)[0][~beyond].all()


def test_a_mask_at_another_size_takes_the_entry_before():
    hidden = np.arange(6)[None, None] >= 3
    assert at_level(jnp.asarray(hidden), (1, 3)).tolist() == [[[False, False, True]]]
    assert at_level(jnp.asarray(hidden), (1, 12))[0, 0].tolist() == [False] * 6 + [True] * 6


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_windows_of_what_is_local_are_the_whole(windows):
    images = np.random.default_rng(0).normal(size=(1, 32, 48, 1)).astype(np.float32)

    def features_of(x):
        b, h, w, c = x.shape
        return x.reshape(b, h // 4, 4, w // 4, 4, c).mean(axis=(2, 4))

    found = windowed(features_of, jnp.asarray(images), windows=windows, patch_size=4)
    assert np.allclose(found[..., 1:], features_of(images), atol=1e-6)
    assert found.shape == (1, 8, 12, 2)


def test_corners_stay_and_what_lies_between_is_linear():
    x = np.array([[0.0, 3.0], [6.0, 9.0]], np.float32)[None, :, :, None]
    found = resize_corners(jnp.asarray(x), (4, 4))[0, :, :, 0]
    assert np.allclose(found, np.arange(4)[None] + 2 * np.arange(4)[:, None], atol=1e-6)

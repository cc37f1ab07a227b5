"""Labels that travel with moving patches, J and F of shifted squares, and probes of short clips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.eval import adamw, attentive_probe, propagation, video_metrics


def moving(speed, frames=4, side=10):
    """(features of unique patches moving right, first labels of a square)."""
    world = np.random.default_rng(0).normal(size=(side, side + frames * speed, 12))
    starts = [(frames - 1 - t) * speed for t in range(frames)]
    features = [world[:, start : start + side] for start in starts]
    labels = np.zeros((side, side), int)
    labels[3:6, 2:5] = 1
    return features, np.eye(2)[labels]


def test_a_square_is_followed_within_the_radius_and_lost_beyond():
    features, labels = moving(speed=1)
    settings = propagation.Settings(context=2, radius=2, neighbors=1)
    *_, last = propagation.propagate(features, labels, settings)
    # What came into view at the left was never labelled.
    assert np.array_equal(np.argmax(last, axis=-1)[:, 3:], labels.argmax(-1)[:, :-3])
    lost = propagation.Settings(context=2, radius=0, neighbors=1)
    *_, last = propagation.propagate(features, labels, lost)
    assert np.array_equal(np.argmax(last, axis=-1), labels.argmax(-1))  # it stays where it was


def test_a_still_video_keeps_its_labels_and_labels_stay_a_distribution():
    features, labels = moving(speed=0)
    for settings in (
        propagation.Settings(neighbors=1),
        propagation.Settings(radius=np.inf, shape="circle"),
    ):
        for found in propagation.propagate(features, labels, settings):
            assert np.allclose(np.sum(found, axis=-1), 1, atol=1e-5)
            if settings.neighbors == 1:
                assert np.array_equal(np.argmax(found, axis=-1), labels.argmax(-1))


def test_pixels_take_the_largest_label_and_stretching_can_change_it():
    soft = np.array([[[0.9, 0.1], [0.6, 0.4]]])
    assert propagation.predicted(soft, (2, 4)).max() == 0
    assert propagation.predicted(soft, (2, 4), rule="notebook")[0].tolist() == [0, 0, 1, 1]
    assert propagation.predicted(soft, (2, 4), rule="dino")[0].tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="'oval' is unknown"):
        propagation.neighbourhood((3, 3), 1, "oval")


@pytest.mark.parametrize(
    "shift, j, f", [(0, 1, 1), (1, 0.939394, 1), (2, 0.882353, 0.515625), (4, 0.777778, 0.484375)]
)
def test_j_and_f_of_a_shifted_square(shift, j, f):
    truth, predicted = np.zeros((2, 64, 64), bool)
    truth[16:48, 16:48] = True
    predicted[16:48, 16 + shift : 48 + shift] = True
    assert video_metrics.region_j(predicted, truth) == pytest.approx(j, rel=1e-5)
    assert video_metrics.contour_f(predicted, truth) == pytest.approx(f, rel=1e-5)


def test_empty_masks_and_missing_objects():
    empty, full = np.zeros((8, 9), bool), np.ones((8, 9), bool)
    assert video_metrics.region_j(empty, empty) == video_metrics.contour_f(empty, empty) == 1
    assert video_metrics.region_j(full, empty) == 0
    assert video_metrics.contour_f(full, empty) == 1  # a full frame has no boundary either
    square = empty.copy()
    square[2:5, 2:5] = True
    truth = np.stack([square[None], full[None]])
    j, _ = video_metrics.object_scores(truth[:1], truth)
    assert j.tolist() == [[1], [0]]
    with pytest.raises(ValueError, match="prediction of"):
        video_metrics.object_scores(truth, truth[:1])


def test_growing_is_a_disk():
    point = np.zeros((9, 9), bool)
    point[4, 4] = point[0, 8] = True
    rows, columns = np.mgrid[:9, :9]
    want = ((rows - 4) ** 2 + (columns - 4) ** 2 <= 4) | (rows**2 + (columns - 8) ** 2 <= 4)
    assert np.array_equal(video_metrics.grown(point, 2), want)


def dots(num, seed):
    """Clips [N, 3 frames x 5 places, 6] of a dot that moves right (1) or left (0)."""
    rng = np.random.default_rng(seed)
    labels, starts = rng.integers(0, 2, num), rng.integers(1, 4, num)
    tokens = np.zeros((num, 3, 5, 6), np.float32)
    for frame, row in np.ndindex(3, num):
        tokens[row, frame, starts[row] + (frame - 1) * (1 if labels[row] else -1), :3] = 1
    return tokens.reshape(num, 15, 6), labels


def accuracy_of_probe(with_places, with_rope=False, steps=100):
    tokens, labels = (jnp.asarray(x) for x in dots(64, seed=0))
    params = attentive_probe.new_probe(
        jax.random.key(0), width=24, num_classes=2, depth=2, inputs=6
    )
    times = jnp.tile(jnp.array([[0.0, 0.5, 1.0]]), (64, 1))
    options = {
        "num_heads": 2,
        "places_BND": attentive_probe.places(times, (1, 5), 24) if with_places else None,
        "coords_BN3": attentive_probe.coordinates(times, (1, 5)) if with_rope else None,
    }
    own = adamw.Settings(*(jnp.asarray(x) for x in (3e-3, 1e-3, 0.9)))

    @jax.jit
    def step(params, moments):
        def loss(p):
            return attentive_probe.probe_loss(p, tokens, labels, **options)

        return adamw.adamw(params, jax.grad(loss)(params), moments, own)

    moments = adamw.start(params)
    for _ in range(steps):
        params, moments = step(params, moments)
    unseen, truth = dots(64, seed=1)
    logits = attentive_probe.class_logits(params, unseen, **options)
    return float(np.mean(np.argmax(logits, axis=-1) == truth))


@pytest.mark.slow
def test_direction_needs_places_in_time():
    """Without them a clip is a bag of patches, the same in both directions."""
    assert accuracy_of_probe(True) > 0.95
    assert accuracy_of_probe(False, with_rope=True, steps=300) > 0.95
    assert 0.3 < accuracy_of_probe(False) < 0.7


def test_attention_turned_by_places_sees_their_differences_in_a_plane_of_each_head():
    rng = np.random.default_rng(0)
    coords = jnp.asarray(rng.uniform(-1, 1, (2, 7, 3)), jnp.float32)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 7, 3 * 20)), jnp.float32) for _ in range(3))

    def read(coords, block=0):
        shape = {"num_heads": 3, "head_width": 20, "block": block}
        angles = attentive_probe.rope_angles(coords, **shape)
        assert angles.shape == (2, 7, 3, 9)  # 18 of 20 channels turn
        return np.asarray(attentive_probe._attend(q, k, v, 3, angles))

    found = read(coords)
    np.testing.assert_allclose(read(coords + jnp.array([[[0.3, -0.2, 0.5]]])), found, atol=1e-4)
    for axis in range(3):
        other = read(coords.at[:, 0, axis].add(0.1))
        assert np.abs(other - found).max() > 1e-3
    assert np.abs(read(coords, block=1) - found).max() > 1e-3
    one, two = np.zeros((2, 1, 1, 3), np.float32)
    one[..., 1], two[..., 2] = 1, 1  # a row, a column: as long in every head, elsewhere
    row, column = (
        np.asarray(attentive_probe.rope_angles(x, num_heads=3, head_width=6, block=0))[0, 0]
        for x in (one, two)
    )
    np.testing.assert_allclose(np.linalg.norm(row, axis=1), 2 * np.pi, rtol=1e-5)
    np.testing.assert_allclose((row * column).sum(axis=1), 0, atol=1e-4)
    assert np.abs(row[0] - row[1]).max() > 0.1 and np.all(row[:, 0] == 0)


def test_coordinates_are_centres_from_minus_one_to_one():
    found = attentive_probe.coordinates(jnp.array([[0.0, 1.0]]), (2, 1))
    want = [[-1, -0.5, 0], [-1, 0.5, 0], [1, -0.5, 0], [1, 0.5, 0]]
    np.testing.assert_allclose(found[0], want)


def test_frames_of_a_clip_include_both_ends_and_repeat_in_short_videos():
    frames = attentive_probe.clip_frames(100, num=16)
    assert (frames[0], frames[-1], len(frames)) == (0, 99, 16)
    assert attentive_probe.clip_frames(2, num=4) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="of a video of 0"):
        attentive_probe.clip_frames(0)

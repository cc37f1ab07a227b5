"""Matches that are known: shifted textures, permuted patches, keypoints, and chance."""

import numpy as np
import pytest

from dinojax.eval import correspondence, foreground, matching, similarity


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plane(side):
    """Points of a plane at depth 1, a tenth of a metre apart."""
    rows, columns = np.mgrid[:side, :side] / 10.0
    return np.stack([columns, rows, np.ones((side, side))], axis=-1)


def test_a_shifted_texture_is_matched_exactly_and_noise_is_not():
    texture = noise(0, 8, 11, 16)
    left, right = texture[:, :8], texture[:, 3:]
    xyz = plane(8)
    matches = correspondence.match_points(left, right, xyz, xyz, num=40)
    shift = matches.source_uv - matches.target_uv
    assert np.array_equal(shift, np.tile([3.0, 0.0], (40, 1)))
    pose = np.array([[1, 0, 0, -0.3], [0, 1, 0, 0], [0, 0, 1, 0]])
    errors = np.linalg.norm(
        correspondence.moved(matches.source_xyz, pose) - matches.target_xyz, axis=1
    )
    assert correspondence.recall(errors, 0.01) == 100
    lost = correspondence.match_points(left, noise(9, 8, 8, 16), xyz, xyz, num=64)
    errors = np.linalg.norm(correspondence.moved(lost.source_xyz, pose) - lost.target_xyz, axis=1)
    assert correspondence.recall(errors, 0.05) < 10


def test_only_points_with_a_depth_take_part_and_ranks_differ():
    xyz = plane(8)
    hidden = xyz.copy()
    hidden[:4, :, 2] = 0
    texture = noise(0, 8, 8, 16)
    matches = correspondence.match_points(texture, texture, hidden, xyz, num=100)
    assert len(matches.score) == 32 and matches.source_uv[:, 1].min() == 4.5
    distance = np.array([[0.1, 0.11], [0.2, 0.9]])
    assert correspondence.scores(distance, "cosine").argmax() == 0
    assert correspondence.scores(distance, "ratio").argmax() == 1


def test_keypoints_of_the_same_image_are_within_the_step_of_a_patch():
    features, side = noise(1, 16, 16, 24), 160
    rng = np.random.default_rng(2)
    points = np.column_stack([rng.uniform(0, side, (12, 2)), np.ones(12)])
    points[0, 2] = 0  # not seen
    found = correspondence.keypoint_errors(
        features, features, points, points, image_size=side, scale=1.0
    )
    assert len(found.error) == 11 and 0 not in found.keypoint
    assert found.error.max() < 1.5 * np.sqrt(2) / 16
    mirrored = correspondence.keypoint_errors(
        features, features[:, ::-1], points, points, image_size=side, scale=1.0
    )
    assert mirrored.error.mean() > 2 * found.error.mean()


def test_permuted_patches_are_found_again():
    left = noise(3, 6, 7, 16)
    order = np.random.default_rng(4).permutation(42)
    right = left.reshape(42, 16)[order].reshape(6, 7, 16)
    matches = matching.match_patches(left, right, mutual=True)
    assert np.array_equal(order[matches.right], matches.left) and len(matches.left) == 42
    front = np.zeros((6, 7), bool)
    front[2:4] = True
    some = matching.match_patches(left, right, left_front_hw=front)
    assert sorted(some.left) == list(range(14, 28))


def test_points_that_are_kept_are_apart_and_others_had_a_neighbour():
    points = np.random.default_rng(5).uniform(0, 500, (80, 2))
    kept = points[matching.spread_out(points, 100)]
    gaps = np.linalg.norm(kept[:, None] - kept, axis=-1)
    assert gaps[~np.eye(len(kept), dtype=bool)].min() >= 100
    assert len(matching.spread_out(points[:1], 100)) == 1
    assert matching.spread_out(np.zeros((5, 2)), 1).tolist() == [4]


def test_similarity_is_one_at_its_place_whatever_the_lengths():
    patches = noise(6, 5, 6, 8)
    patches[3] *= 100
    found = similarity.similarity_map(patches, (3, 2))
    assert found[3, 2] == pytest.approx(1, abs=1e-6) and found.shape == (5, 6)
    assert np.abs(found).max() <= 1 + 1e-6
    with pytest.raises(ValueError, match="not on a grid of 5 x 6"):
        similarity.similarity_map(patches, (5, 0))


def test_colours_of_planted_components_and_of_no_variance():
    rng = np.random.default_rng(7)
    axes = np.linalg.qr(rng.normal(size=(9, 3)))[0]
    values = rng.normal(size=(400, 3)) * [5, 2, 1]
    pca = foreground.fit_pca(values @ axes.T)
    assert np.allclose(np.abs(pca.components_KD @ axes), np.eye(3), atol=0.2)
    assert np.allclose(np.var(pca.project(values @ axes.T), axis=0, ddof=1), 1)
    flat = foreground.fit_pca(np.ones((20, 9)))
    assert np.array_equal(flat.project(np.ones((4, 9))), np.zeros((4, 3)))


def test_a_classifier_separates_colours_and_needs_both():
    x = np.concatenate([noise(8, 30, 4) + 4, noise(9, 30, 4) - 4])
    y = np.repeat([1, 0], 30)
    classifier = foreground.fit_classifier(x, y, c=0.1)
    assert foreground.average_precision(classifier.score(x), y) == 1
    assert foreground.average_precision(np.zeros(60), y) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="foreground and of background"):
        foreground.fit_classifier(x, np.ones(60), c=0.1)

"""TokenCut on planted objects: boxes, thresholds, degenerate images, and the eigenvector."""

import numpy as np
import pytest
import scipy.linalg

from dinojax.eval import tokencut


def planted(seed=0, grid=(9, 12), noise=0.0):
    """Patches of a scene with one object, rows 2..5 and columns 3..8."""
    patches = np.tile([1.0, 0.0, 0.1, 0.0], (*grid, 1))
    patches[2:6, 3:9] = [0.0, 1.0, 0.1, 0.0]
    return patches + noise * np.random.default_rng(seed).normal(size=patches.shape)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.4])
def test_a_coloured_rectangle_is_boxed(threshold):
    found = tokencut.tokencut(
        planted(noise=0.02), threshold=threshold, patch_size=16, image_size=(140, 190)
    )
    assert found.box == (48, 32, 144, 96)
    assert found.mask_hw.sum() == 24 and found.vector_hw.flat[found.seed] > 0


def test_the_box_ends_with_the_image():
    patches = planted()[2:6, 3:]
    found = tokencut.tokencut(patches[:, ::-1], threshold=0.2, patch_size=16, image_size=(60, 140))
    assert found.box[3] == 60 or found.box[2] <= 140


def test_the_vector_is_that_of_a_dense_solver():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    weights = np.where(x @ x.T > 0.1, 1.0, 1e-5)
    ours = tokencut.second_vector(weights)
    degrees = np.diag(weights.sum(axis=1))
    want = scipy.linalg.eigh(degrees - weights, degrees, subset_by_index=[1, 1])[1][:, 0]
    assert np.allclose(ours * np.sign(ours @ want), want, atol=1e-9)
    assert ours @ degrees @ ours == pytest.approx(1)


def test_two_blocks_whose_eigenvalue_is_tiny():
    weights = np.full((12, 12), 1e-5)
    weights[:4, :4] = weights[4:, 4:] = 1
    vector = tokencut.second_vector(weights)
    assert np.allclose(vector / vector[0], [1] * 4 + [-0.25] * 8, atol=1e-4)


@pytest.mark.parametrize("grid", [(6, 7), (3, 4), (1, 2)])
def test_patches_that_are_all_alike_give_some_box(grid):
    found = tokencut.tokencut(np.ones((*grid, 5)), threshold=0.2, patch_size=8, image_size=(48, 56))
    left, top, right, bottom = found.box
    assert 0 <= left < right <= 56 and 0 <= top < bottom <= 48
    assert np.isfinite(found.vector_hw).all()


def test_equal_images_give_equal_boxes_and_nan_is_refused():
    patches = np.random.default_rng(2).normal(size=(7, 7, 5))
    options = {"threshold": 0.1, "patch_size": 8, "image_size": (56, 56)}
    first, second = (tokencut.tokencut(patches * scale, **options) for scale in (1, 3))
    assert first.box == second.box
    with pytest.raises(ValueError, match="holds NaN"):
        tokencut.tokencut(patches * np.nan, **options)


def test_located_is_an_overlap_of_a_half_with_any_box():
    assert tokencut.is_located((0, 0, 10, 10), [[50, 50, 60, 60], [0, 0, 10, 19]])
    assert not tokencut.is_located((0, 0, 10, 10), [[0, 0, 10, 21]])
    assert not tokencut.is_located((0, 0, 10, 10), np.zeros((0, 4)))

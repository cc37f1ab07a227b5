"""SIGReg: its values at known distributions. tests/train/test_guidance.py has it in a step."""

import jax
import numpy as np
import pytest

from dinojax.losses import sigreg

GRID = sigreg.grid(5.0, 17)


def loss(rows_BGZ, directions_ZS):
    return sigreg.sigreg_loss(sigreg.waves(rows_BGZ, directions_ZS, GRID.points_T), GRID)


def directions(width, num=64):
    return np.asarray(sigreg.directions(jax.random.key(0), width, num))


def in_words(rows_NZ, directions_ZS) -> float:
    """The definition over the whole grid, one direction and one point at a time."""
    points = np.linspace(-5.0, 5.0, 17)
    values = []
    for direction in directions_ZS.T:
        differences = [
            abs(np.mean(np.exp(1j * t * (rows_NZ @ direction))) - np.exp(-t * t / 2)) ** 2
            * np.exp(-t * t / 2)
            for t in points
        ]
        values.append(np.trapezoid(differences, points))
    return float(np.mean(values))


def test_the_half_grid_gives_what_the_definition_says():
    rows = np.random.default_rng(0).normal(0.3, 1.4, (20, 2, 6)).astype(np.float32)
    wanted = np.mean([in_words(rows[:, crop], directions(6)) for crop in range(2)])
    np.testing.assert_allclose(loss(rows, directions(6)), wanted, rtol=1e-5)


def test_a_collapse_costs_a_known_value_and_normal_rows_next_to_nothing():
    zeros = np.zeros((8, 1, 4), np.float32)
    np.testing.assert_allclose(loss(zeros, directions(4)), 0.408921, rtol=1e-5)
    rows = np.random.default_rng(0).normal(size=(4096, 1, 4)).astype(np.float32)
    assert loss(rows, directions(4)) < 3 * 1.0594 / 4096


def test_directions_have_unit_length_and_differ_by_key():
    found = directions(5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1.0, rtol=1e-5)
    assert not np.allclose(found, sigreg.directions(jax.random.key(1), 5, 64))


def test_rows_in_bfloat16_have_float32_means():
    rows = np.random.default_rng(0).normal(size=(16, 1, 4)).astype(np.float32)
    rounded = rows.astype(jax.numpy.bfloat16)
    found = loss(rounded, directions(4))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, loss(rounded.astype(np.float32), directions(4)), rtol=1e-6)


def test_a_grid_of_one_point_is_refused():
    with pytest.raises(ValueError, match="losses.sigreg_points=1 make no grid"):
        sigreg.grid(5.0, 1)

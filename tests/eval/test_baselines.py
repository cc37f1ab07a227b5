"""What a number must beat: pixels in place of features, and which of two is above."""

import numpy as np
import pytest

from dinojax.eval.baselines import compared, random_params, raw_pixels, told
from dinojax.eval.contract import Measured
from dinojax.eval.network import of_backbone
from dinojax.eval.suite import SUITE
from dinojax.models import zoo
from dinojax.sharding import mesh
from tests.support.networks_small import RELEASED

IMAGES = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(np.float32)


def test_pixels_stand_for_features_at_every_size_and_block():
    network = raw_pixels(8)
    cls, mean, patches = map(np.asarray, network(IMAGES))
    assert cls.shape == (2, 16 * 16 * 3) and patches.shape == (2, 24, 192)
    np.testing.assert_array_equal(patches[1, 7], IMAGES[1, 8:16, 8:16].ravel())
    np.testing.assert_allclose(mean, patches.mean(axis=1), rtol=1e-6)
    small = IMAGES[0].reshape(16, 2, 16, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(cls[0], small.ravel(), rtol=1e-4, atol=1e-6)
    assert np.asarray(network(IMAGES[:, :8, :8])[0]).shape == (2, 768)
    found = network.outputs(IMAGES, ("cls@-4", "patches:raw"))
    np.testing.assert_array_equal(found["patches:raw"], patches)
    with pytest.raises(ValueError, match="registers: pixels have no registers"):
        network.outputs(IMAGES, ("registers",))


class Fixed:
    """Measures what its network is."""

    def measure(self, network):
        return Measured({"depth/rmse": network, "knn/cls": network, "tokens/cls_patch": network})


@pytest.mark.parametrize(
    "name, value, interval, above",
    [
        ("knn", 40.0, None, [True, False]),
        ("knn", 40.0, (29.0, 60.0), [False, False]),
        ("depth", 40.0, None, [False, True]),
        ("depth", 40.0, (29.0, 51.0), [False, False]),
        ("tokens", 40.0, None, []),
    ],
)
def test_a_value_is_above_where_its_worse_end_is(name, value, interval, above):
    column = SUITE[name].main.format(features="cls")
    networks = {"random weights": 30.0, "raw pixels": 50.0}
    measured = Measured({column: value})
    found = compared(
        SUITE[name], Fixed(), measured, column=column, networks=networks, interval=interval
    )
    assert [one["above"] for one in found.values()] == above
    if name == "knn" and interval is None:
        sentences = list(told(SUITE[name], found))
        assert sentences == ["above random weights (30.0 %)", "NOT above raw pixels (50.0 %)"]


def test_random_weights_are_the_same_each_time_and_on_any_devices():
    backbone = zoo.module(RELEASED)
    found = []
    for devices in (1, 8):
        layout = mesh.make("dp", devices)
        with mesh.use(layout):
            params = random_params(backbone, layout)
            size = RELEASED.patch_size * 2
            images = np.ones((8, size, size, RELEASED.channels), np.float32)
            found.append(np.asarray(of_backbone(backbone, layout)(params)(images)[0]))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)

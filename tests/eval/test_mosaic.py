"""The dense metric: right for patches that know their place, at chance for those that do not."""

import numpy as np
import pytest

from dinojax.data.example import Example
from dinojax.eval.features import EvalTransform
from dinojax.eval.mosaic import Mosaics

SIDE, PATCH = 32, 8


class Colours:
    """Images of one grey value each; a class per value, or no labels."""

    channels, fingerprint = 1, "colours"

    def __init__(self, num: int, classes: int | None):
        self._values = np.linspace(20, 230, classes or num)
        self.labels = None if classes is None else np.arange(num, dtype=np.int32) % classes
        self.class_names = () if classes is None else tuple(map(str, range(classes)))
        self._num = num

    def __len__(self):
        return self._num

    def __getitem__(self, index: int) -> Example:
        value = self._values[index if self.labels is None else self.labels[index]]
        return Example(np.full((40, 40, 1), value, np.uint8), None, str(index))

    def read(self, index: int, box_size: int | None = None) -> Example:
        return self[index]


def mosaics(bank, query):
    transform = EvalTransform(SIDE, SIDE, "fixed", (0.0,), (1.0,))
    options = dict(transform=transform, patch_size=PATCH, num=20, neighbors=1, temperature=0.07)
    return Mosaics(bank, query, **options, batch_size=8, max_bad_share=0.0)


def looks(images_BHWC):
    """Patches as (angle of) their mean grey value: a network that sees its place and no further."""
    B, side = len(images_BHWC), SIDE // PATCH
    cut = np.asarray(images_BHWC).reshape(B, side, PATCH, side, PATCH)
    return cut.mean(axis=(2, 4)).reshape(B, -1)


def on_circle(values):
    return np.stack([np.cos(3 * values), np.sin(3 * values)], axis=-1)


def local(params, images):
    return None, None, on_circle(looks(images))


def globally(params, images):
    """Every patch says the same of the whole mosaic: cls may be perfect, patches are useless."""
    values = looks(images)
    return None, None, on_circle(np.broadcast_to(values.mean(1, keepdims=True), values.shape))


@pytest.mark.parametrize("classes", [5, None])
def test_patches_that_know_their_place_are_right_and_those_that_do_not_are_at_chance(classes):
    if classes is None:
        source = Colours(80, None)
        both = mosaics(source, source)
    else:
        both = mosaics(Colours(80, classes), Colours(80, classes))
    assert both.accuracy(local, {}) > 99.0
    assert both.accuracy(globally, {}) < 50.0


def test_it_is_the_same_each_time():
    values = [mosaics(Colours(80, 5), Colours(60, 5)).accuracy(globally, {}) for _ in range(2)]
    assert values[0] == values[1]

"""What holds for every evaluation of one feature per image, whatever it learns from them."""

import dataclasses
import functools

import numpy as np
import pytest

from dinojax.data.example import Example
from dinojax.eval import fewshot, heads, linear, logreg, retrieve
from dinojax.eval.augmented import TrainingBatches, random_crop
from dinojax.eval.features import EvalTransform
from dinojax.eval.labelled import Labelled
from dinojax.eval.network import Network
from dinojax.sharding import mesh

SIZE, CLASSES, PER_CLASS = 8, 4, 15
EXACT = EvalTransform(SIZE, SIZE, "fixed", (0.0,) * 3, (1 / 255,) * 3)  # whole numbers again


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Images whose first channel is the class and whose second is a number of their own."""

    numbers: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    channels = 3
    notes = ()

    @property
    def fingerprint(self):
        return f"{self.numbers.tolist()}{self.labels.tolist()}"

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        color = [self.labels[index], self.numbers[index], 0]
        pixels = np.broadcast_to(np.array(color, np.uint8), (SIZE, SIZE, 3))
        return Example(pixels, int(self.labels[index]), str(index))

    def read(self, index, box_size=None):
        return self[index]


def numbered(first, num_classes=CLASSES, order=slice(None)):
    labels = np.repeat(np.arange(num_classes), PER_CLASS).astype(np.int32)
    numbers = first + np.arange(len(labels))
    names = tuple(f"class {label}" for label in range(num_classes))
    return Numbered(numbers[order], labels[order], names)


def labelled(num_classes=CLASSES, batch_size=7, order=slice(None)):
    pair = numbered(0, num_classes, order), numbered(100, num_classes, order)
    return Labelled(*pair, EXACT, batch_size, max_bad_share=0.0, bad_list=None)


def noise(number, label):
    return np.random.default_rng(number).normal(size=6)


NETWORKS = {
    "perfect": lambda number, label: np.eye(6)[label] * 3 + 0.01 * noise(number, label),
    "constant": lambda number, label: np.ones(6),
    "noise": noise,
    "blobs": lambda number, label: np.eye(6)[label] * 1.5 + noise(number, label),
}


def network(kind):
    def embed(params, images_BHWC):
        colors = np.round(np.asarray(images_BHWC)[:, 0, 0]).astype(int)
        found = np.stack([NETWORKS[kind](int(n), int(c)) for c, n, _ in colors]).astype(np.float32)
        return found, 2 * found, None

    return Network(embed, {})


def linear_probe(images, **changes):
    grid = tuple(heads.Head(name, lr) for name in ("cls", "cls+mean") for lr in (0.0, 0.3))
    settings = {
        "augment": False,
        "families": (("cls",), ("cls", "mean")),
        "heads": grid,
        "optimizer": "sgd",
        "batch_size": 16,
        "num_steps": 120,
        "epochs": None,
        "hold_out": 0.2,
        "seed": 0,
    }
    return linear.LinearProbe(images, **{**settings, **changes})


PROBES = {
    "linear": linear_probe,
    "logreg": lambda images: logreg.LogisticProbe(images, "cls", 0.2, "accuracy", 0),
    "fewshot": lambda images: fewshot.FewShot(images, "cls", (1, 5), 3, 1.0),
    "retrieval": lambda images: retrieve.Retrieval(images, "cls", 0, 0),
}
MAIN = {
    "linear": "linear/accuracy",
    "logreg": "logreg/accuracy",
    "fewshot": "fewshot/5",
    "retrieval": "retrieval/map",
}
every_probe = pytest.mark.parametrize("name", list(PROBES))


@functools.cache
def values(name, kind):
    return dict(PROBES[name](labelled()).measure(network(kind)).values)


@every_probe
def test_perfect_features_are_right_always(name):
    assert values(name, "perfect")[MAIN[name]] == 100.0


@every_probe
def test_noise_is_chance(name):
    chance = 100 / CLASSES
    room = 3.5 * np.sqrt(chance * (100 - chance) / (CLASSES * PER_CLASS))
    assert abs(values(name, "noise")[MAIN[name]] - chance) < room


@every_probe
def test_constant_features_have_a_value_near_chance(name):
    found = values(name, "constant")
    assert np.all(np.isfinite(list(found.values())))
    assert found[MAIN[name]] == pytest.approx(100 / CLASSES, abs=8)


@every_probe
def test_one_class_is_always_right(name):
    found = PROBES[name](labelled(num_classes=1)).measure(network("noise")).values
    assert found[MAIN[name]] == 100.0


@every_probe
def test_samples_are_what_the_values_are_means_of(name):
    measured = PROBES[name](labelled()).measure(network("blobs"))
    assert 40 < measured.values[MAIN[name]] < 100
    assert MAIN[name] in measured.samples
    for column, rows in measured.samples.items():
        assert np.mean(rows) == pytest.approx(measured.values[column])
    assert measured.values == values(name, "blobs")  # a second time


@every_probe
def test_neither_batches_nor_devices_change_anything(name):
    want = values(name, "blobs")
    with mesh.use(mesh.make("dp", 2)):
        found = PROBES[name](labelled(batch_size=11)).measure(network("blobs")).values
    assert found == pytest.approx(want, abs=1e-9)


def test_the_order_of_the_images_changes_no_retrieval():
    order = np.random.default_rng(5).permutation(CLASSES * PER_CLASS)
    found = PROBES["retrieval"](labelled(order=order)).measure(network("blobs")).values
    assert found == pytest.approx(values("retrieval", "blobs"), abs=1e-9)


def test_the_head_is_chosen_by_images_held_out_or_by_those_that_judge():
    told = linear_probe(labelled()).measure(network("blobs")).told
    assert "best of 4 heads on 12 held-out images" in told and "at lr 0.3" in told
    judged = linear_probe(labelled(), hold_out=0.0).measure(network("blobs"))
    assert "best of 4 heads on 60 judged images" in judged.told


def test_random_crops_are_learned_from_too():
    probe = linear_probe(labelled(), augment=True, num_steps=40)
    assert probe.measure(network("perfect")).values["linear/accuracy"] == 100.0


def test_epochs_count_images():
    assert linear_probe(labelled(), epochs=10.0)._steps(48) == 30


def test_families_name_the_last_blocks_oldest_first():
    assert linear.families((1, 2), "both") == (
        ("cls",),
        ("cls", "mean"),
        ("cls@-2", "cls"),
        ("cls@-2", "cls", "mean"),
    )
    assert linear.families((1,), "without") == (("cls",),)


def test_published_protocols_have_their_number_of_heads():
    counts = {"paper": 30, "released": 13, "dinov2": 52}
    for name, count in counts.items():
        own = linear.PROTOCOLS[name]
        read = linear.families(own["blocks"], own["mean"])
        assert len(read) * len(own["lrs"]) * len(own["weight_decays"]) == count


def test_a_crop_depends_on_its_place_alone():
    images = labelled().train
    every = TrainingBatches(
        images, images.labels, np.arange(60), EXACT, 16, seed=3, own=frozenset(range(16))
    )
    again, labels, bad = every(2)
    np.testing.assert_array_equal(again[:, 0, 0, 0], labels)  # the pixels carry the class
    half = dataclasses.replace(every, own=frozenset(range(8)))
    np.testing.assert_array_equal(half(2)[0][:8], again[:8])
    assert not half(2)[0][8:].any() and not bad


@pytest.mark.parametrize("height, width", [(40, 30), (9, 90)])
def test_crops_lie_inside_the_image_and_half_are_mirrored(height, width):
    ramp = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 3))
    rng = np.random.default_rng(0)
    crops = [random_crop(ramp, 8, rng).astype(int) for _ in range(60)]
    rising = np.mean([crop[0, -1, 0] > crop[0, 0, 0] for crop in crops])
    assert 0.3 < rising < 0.7
    assert min(crop.min() for crop in crops) >= 0 and max(crop.max() for crop in crops) < width

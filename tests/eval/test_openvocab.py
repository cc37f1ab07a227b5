"""Open-vocabulary segmentation of a folder, with words and patches whose answer is known."""

import types

import numpy as np
import pytest
from PIL import Image

from dinojax import config as configs
from dinojax.config import ConfigError
from dinojax.eval import contract, openvocab
from dinojax.weights.preprocess import Preprocessing

NAMES = ["red", "green", "blue"]
OWN = Preprocessing(crop_size=16, resize_size=24, normalize="none", mean=None, std=None)


class Planted:
    """Patches of 4 pixels are their own mean colour, and names of colours are these colours."""

    networks = types.SimpleNamespace(backbone=types.SimpleNamespace(spec=None))
    networks.backbone.spec = types.SimpleNamespace(patch_size=4)

    def texts(self, network, texts):
        halves = np.eye(3)[[NAMES.index(text.split()[-1]) for text in texts]]
        return np.concatenate([np.full_like(halves, 0.3), halves], axis=1)

    def patches(self, network, images_BHWC, *, of):
        assert of == "head"
        batch, height, width, _ = images_BHWC.shape
        cut = images_BHWC.reshape(batch, height // 4, 4, width // 4, 4, 3)
        return cut.mean(axis=(2, 4))


@pytest.fixture
def data(tmp_path):
    """Two images of 32 x 64 pixels, red beside blue; values from 1, a border that is ignored."""
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    for number in range(2):
        pixels, values = np.zeros((32, 64, 3), np.uint8), np.ones((32, 64), np.uint8)
        pixels[:, :32, 0], pixels[:, 32:, 2] = 200, 200
        values[:, 32:], values[:, 30:34], values[:2] = 3, 255, 0
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(values).save(tmp_path / "maps" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return tmp_path


def opened(monkeypatch, *settings):
    monkeypatch.setattr(openvocab, "open_aligned", lambda setting: Planted())
    own = ["openvocab.resize=32", "openvocab.side=16", "openvocab.stride=8"]
    own += ["openvocab.first=1", "openvocab.templates=a photo of {}"]
    config = configs.load("tiny", ["image.channels=3", *own, *settings])
    return openvocab.build(config.openvocab, contract.Setting(config, OWN, 4))


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_planted_words_are_found_in_a_folder(mode, data, monkeypatch):
    evaluation = opened(monkeypatch, f"openvocab.data={data}", f"openvocab.mode={mode}")
    found = evaluation.measure(None)
    assert found.values["openvocab/miou"] == found.values["openvocab/accuracy"] == 100.0
    assert found.num == 2 and found.told == f"2 images, 3 classes, {mode}, patches of the head"
    assert found.pictures["words"].shape[2] == 3
    assert found.statistic(found.samples["openvocab/miou"][[0, 0]]) == 100.0


def test_what_is_taken_for_another_class_counts_against_both(data, monkeypatch):
    wrong = np.asarray(Image.open(data / "maps" / "0.png")).copy()
    wrong[wrong == 3] = 2
    Image.fromarray(wrong).save(data / "maps" / "0.png")
    found = opened(monkeypatch, f"openvocab.data={data}").measure(None)
    # Of the first image blue is said where green is: red 1, green 0, blue 1 of 2.
    assert found.values["openvocab/miou"] == pytest.approx(100 * (1 + 0 + 0.5) / 3)
    assert found.values["openvocab/accuracy"] == pytest.approx(75.0)


def test_the_folder_of_the_command_is_taken_where_it_has_maps_and_names(data, monkeypatch):
    assert opened(monkeypatch, f"data.path={data}", "data.source=folder").folder.maps
    (data / "classes.txt").unlink()
    assert opened(monkeypatch, f"data.path={data}", "data.source=folder") is None
    assert opened(monkeypatch) is None


def test_faults_of_a_folder_are_told_by_file(data, monkeypatch):
    Image.fromarray(np.full((32, 64), 4, np.uint8)).save(data / "maps" / "1.png")
    with pytest.raises(ValueError, match=r"1.png holds the value 4, and .* has 3 names"):
        opened(monkeypatch, f"openvocab.data={data}").measure(None)
    (data / "maps" / "1.png").unlink()
    with pytest.raises(ConfigError, match=r"1 of 2 images have no map; the first is 1.png"):
        opened(monkeypatch, f"openvocab.data={data}")
    (data / "classes.txt").unlink()
    with pytest.raises(ConfigError, match=r"classes.txt is missing"):
        opened(monkeypatch, f"openvocab.data={data}")
    with pytest.raises(ConfigError, match=r"openvocab.classes is empty"):
        opened(monkeypatch, f"openvocab.images={data}/images", f"openvocab.labels={data}/maps")


def test_mean_iou_leaves_out_what_counts_for_nothing():
    stored = np.array([[0, 1, 2], [255, 2, 3]])
    truth = openvocab.class_numbers(stored, first=1, num=4, name="x")
    assert truth.tolist() == [[-1, 0, 1], [-1, 1, 2]]
    areas = openvocab.areas_of(truth, np.array([[2, 0, 0], [2, 1, 2]]), 4)
    assert areas.tolist() == [[1, 1, 1, 0], [2, 1, 1, 0], [1, 2, 1, 0]]
    # 1/2, 1/2 and 1; the fourth is neither there nor found
    assert openvocab.miou(areas[None]) == pytest.approx(100 * 2 / 3)
    assert openvocab.accuracy(areas[None]) == 75.0

"""The survey of a data set against plain numpy over the same images."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dinojax.data import check as module
from dinojax.data.check import check
from dinojax.data.folder import folder as open_folder
from tests.support.stored_data import folder, png, saved

SIZES = {"crops.global_size": 6, "crops.local_size": 3}


def files(root):
    rng = np.random.default_rng(0)
    images = {
        f"{'ab'[i % 2]}/{i}.png": saved(
            Image.fromarray(rng.integers(0, 256, (4 + i, 8, 3), np.uint8)), "PNG"
        )
        for i in range(5)
    }
    images["a/grey.jpg"] = saved(Image.new("L", (9, 9), 50), "JPEG")
    images["b/twin.png"] = images["a/0.png"]
    images["b/third.png"] = images["a/0.png"]
    return folder(root, images)


@pytest.fixture
def root(tmp_path):
    return files(tmp_path)


def report(root, **options):
    source = open_folder(path=str(root), channels=3)
    return check(source, box_size=8, crop_sizes=SIZES, **options)


def test_mean_and_deviation_are_over_all_pixels(root):
    source = open_folder(path=str(root), channels=3)
    pixels = np.concatenate([source[i].pixels.reshape(-1, 3) for i in range(len(source))])
    found = report(root)
    np.testing.assert_allclose(found["mean"], (pixels / 255).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], (pixels / 255).std(axis=0), rtol=1e-12)


def test_sides_classes_and_kinds_are_counted(root):
    found = report(root)
    assert found["images"] == 8 and found["unreadable"] == 0
    assert found["bytes"] == sum(path.stat().st_size for path in root.rglob("*.*"))
    assert found["stored_as"] == {"PNG RGB 8 bit": 7, "JPEG L 8 bit": 1}
    assert found["sides"]["short"] == {
        "smallest": 4,
        "1 %": 4,
        "median": 5,
        "99 %": 8,
        "largest": 9,
    }
    assert found["sides"]["long"]["largest"] == 9 and found["larger_than_box"] == 1
    assert found["shorter_than"] == {"crops.global_size": 4, "crops.local_size": 0}
    assert found["classes"]["number"] == 2
    assert found["classes"]["images_per_class"] == {"smallest": 4, "median": 4, "largest": 4}
    assert found["images_per_second_per_core"] > 0
    json.dumps(found)


def test_exact_duplicates_are_grouped_by_content(root):
    found = report(root)["duplicates"]
    assert found == {
        "superfluous": 2,
        "groups": 1,
        "names": [["a/0.png", "b/third.png", "b/twin.png"]],
    }


def test_unreadable_images_are_listed_and_left_out_of_the_numbers(root):
    before = report(root)
    (root / "a/empty.png").write_bytes(b"")
    (root / "b/cut.png").write_bytes(png(0)[:45])
    found = report(root)
    listed = {image["name"]: image["reason"] for image in found["unreadable_images"]}
    assert list(listed) == ["a/empty.png", "b/cut.png"] and found["unreadable"] == 2
    assert listed["a/empty.png"] == "cannot decode a/empty.png: the file is empty."
    assert found["mean"] == before["mean"] and found["sides"] == before["sides"]
    (root / "a/empty.png").unlink()
    (root / "b/cut.png").unlink()
    assert report(root) | {"images_per_second_per_core": 0} == before | {
        "images_per_second_per_core": 0
    }


def test_a_file_that_vanishes_is_unreadable(root):
    source = open_folder(path=str(root), channels=3)
    (root / "b/1.png").unlink()
    found = check(source, box_size=8, crop_sizes=SIZES)
    assert "b/1.png" in found["unreadable_images"][0]["reason"]
    assert found["duplicates"]["superfluous"] == 2


def test_chunks_and_processes_change_nothing(root, monkeypatch, capsys):
    whole = report(root) | {"images_per_second_per_core": 0}
    monkeypatch.setattr(module, "CHUNK", 3)
    for processes in (1, 2):
        found = report(root, processes=processes) | {"images_per_second_per_core": 0}
        assert found == whole
    assert capsys.readouterr().err.count("checked 8/8") == 3


def test_channels_of_the_recipe_count(root):
    source = open_folder(path=str(root), channels=1)
    found = check(source, box_size=8, crop_sizes=SIZES)
    pixels = np.concatenate([source[i].pixels.ravel() for i in range(len(source))])
    np.testing.assert_allclose(found["mean"], [(pixels / 255).mean()], rtol=1e-12)


def test_every_eighth_image_is_timed(tmp_path):
    images = {f"{i:02}.png": saved(Image.new("RGB", (9, 9)), "PNG") for i in range(17)}
    source = open_folder(path=str(folder(tmp_path, images)), channels=3)
    assert module.survey(source, range(1, 17), 4).num_timed == 2
    assert io.BytesIO(source.encoded(0).data)

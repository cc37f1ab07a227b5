"""Views of objects with known geometry, on a miniature of NAVI's layout."""

import json

import numpy as np
import pytest
from PIL import Image

from dinojax.config import ConfigError
from dinojax.eval import navi_evaluator as navi
from dinojax.eval.baselines import raw_pixels
from tests.support.dense import PATCH, save, section, setting
from tests.support.miniatures import views_in

OWN = {"size": 48, "every_view": 1, "num": 144}


@pytest.fixture
def root(tmp_path):
    views_in(tmp_path)
    return tmp_path


def opened(root, **values):
    return navi.build(section(navi, path=str(root), **{**OWN, **values}), setting())


@pytest.mark.parametrize("rank", ["cosine", "ratio"])
def test_a_turned_view_is_matched_wholly_and_one_of_other_colours_by_chance(root, rank):
    found = opened(root, rank=rank).measure(raw_pixels(PATCH))
    assert found.num == 4 and found.told == "4 pairs of views, 2 scenes"
    cups, fans = found.samples["navi/recall"][:2], found.samples["navi/recall"][2:]
    assert (cups == 100).all(), cups
    # 144 points 1 cm apart: within 1 cm lies the point itself, within 5 cm at most 69 of them.
    assert (fans[:, 0] < 8).all() and (fans[:, 2] < 60).all(), fans
    assert found.values["navi/recall"] == pytest.approx(np.mean([cups, fans]))
    assert found.values["navi/90_120_degrees"] == found.values["navi/recall_2cm"]
    assert "navi/0_30_degrees" not in found.values


def test_points_lie_where_the_camera_sees_them(root):
    view = opened(root).views[0]
    depth = navi.metres(view.depth)
    assert navi.object_square(depth > 0) == (8, 8, 48)
    xyz = navi.in_space(depth, view, (8, 8, 48), 12)
    # Half the size, so half the focal length: 64; the cell in a corner is 22 pixels off the centre.
    np.testing.assert_allclose(xyz[0, 0], [-22 * 0.16 / 64, -22 * 0.16 / 64, 0.16], rtol=1e-3)
    np.testing.assert_allclose(xyz[0, 11], [22 * 0.16 / 64, -22 * 0.16 / 64, 0.16], rtol=1e-3)


def test_a_square_stays_in_the_frame():
    there = np.zeros((30, 50), bool)
    there[2:12, 40:50] = True
    assert navi.object_square(there) == (2, 40, 10)
    there[2:26, 49] = True
    assert navi.object_square(there) == (2, 26, 24)
    there[:, 10:] = True
    assert navi.object_square(there) == (0, 15, 30)


def test_poses_turn_and_move_as_their_quaternions_say():
    half = 0.5**0.5
    pose = navi.pose_of(np.array([2 * half, 0, 0, 2 * half]), np.array([0.0, 1000.0, 0.0]))
    np.testing.assert_allclose(pose @ [1, 0, 0, 1], [0, 2, 0], atol=1e-12)
    other = navi.pose_of(np.array([half, half, 0, 0]), np.array([5.0, 6.0, 7.0]))
    point = np.array([0.1, 0.2, 0.3, 1])
    there = navi.relative(pose, other) @ [*(pose @ point), 1]
    np.testing.assert_allclose(there, other @ point, atol=1e-12)


def test_images_are_turned_as_their_files_say(root):
    path = root / "cup/wild_set/images/000.jpg"
    before = navi.upright(opened(root).images, 0)
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # shown turned by 90 degrees
        image.save(path, exif=exif, quality=100, subsampling=0)
    after = navi.upright(opened(root).images, 0)
    assert np.abs(np.rot90(before, -1).astype(int) - after).max() < 4
    assert np.abs(before.astype(int) - after).max() > 40


def test_pairs_are_of_one_scene_and_within_the_angle_and_the_same_each_time(root):
    views = list(opened(root).views)
    assert navi.drawn(views, every=1, max_angle=120) == [(0, 1), (1, 0), (2, 3), (3, 2)]
    assert navi.drawn(views, every=4, max_angle=120) == [(0, 1)]
    with pytest.raises(ConfigError, match="turned by at most navi.max_angle=80 degrees"):
        opened(root, max_angle=80.0)


def test_what_is_wrong_is_named(root):
    with pytest.raises(ConfigError, match=r"multiview\*/annotations.json is there"):
        opened(root, scenes="multiview")
    with pytest.raises(ConfigError, match="navi.size=44 is no multiple of 8 pixels of the patch"):
        opened(root, size=44)
    notes = root / "fan/wild_set/annotations.json"
    rows = json.loads(notes.read_text())
    rows[1]["camera"]["q"] = [1, 0, 0]
    notes.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="fan/wild_set/annotations.json, entry 1: expected"):
        opened(root)
    rows[1]["camera"].pop("q")
    notes.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="entry 1: .*q"):
        opened(root)
    notes.unlink()
    evaluation = opened(root)
    depth = root / "cup/wild_set/depth/001.png"
    save(depth, np.ones((32, 64), np.uint16))
    with pytest.raises(ValueError, match="cup/wild_set/depth/001.png is 32 x 64 and its image 64"):
        evaluation.measure(raw_pixels(PATCH))
    save(depth, np.zeros((64, 64), np.uint16))
    with pytest.raises(ValueError, match="001.png shows no object"):
        evaluation.measure(raw_pixels(PATCH))
    save(depth, np.ones((64, 64), np.uint8))
    with pytest.raises(ValueError, match="001.png is no 16-bit grey PNG"):
        evaluation.measure(raw_pixels(PATCH))
    depth.unlink()
    with pytest.raises(ConfigError, match="1 maps of depth are not there, the first: .*001.png"):
        opened(root)


def test_every_fourth_view_counts_where_nothing_else_is_said(root):
    evaluation = navi.build(section(navi, path=str(root), size=48), setting())
    assert len(evaluation.pairs) == 1

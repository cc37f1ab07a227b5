"""Rows of the table that judge patches: pixels, oracles and noise in place of a network."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data.decode import DecodeError
from dinojax.eval import boxes as boxes_of
from dinojax.eval import (
    depth_evaluator,
    objects_evaluator,
    pan_evaluator,
    ridge_evaluator,
    segmentation_evaluator,
    warps_evaluator,
)
from dinojax.eval.baselines import raw_pixels
from dinojax.eval.network import Network
from tests.support.dense import (
    PATCH,
    Textures,
    changed,
    colour_folder,
    constant,
    noise,
    save,
    section,
    setting,
    with_images,
)


def test_a_ridge_on_colours_is_perfect_on_noise_is_chance_on_constants_has_numbers(tmp_path):
    data = colour_folder(tmp_path, num=6)
    own = section(ridge_evaluator, train=data, val=data, size=40)
    evaluation = ridge_evaluator.build(own, setting())
    found = evaluation.measure(raw_pixels(PATCH))
    # Scores are bilinear between patches, so that the pixels between two colours may fall wrongly.
    assert found.values["ridge/miou"] > 75 and found.num == 6
    assert found.statistic(found.samples["ridge/miou"]) == pytest.approx(found.values["ridge/miou"])
    assert evaluation.measure(Network(noise, {})).values["ridge/miou"] < 45
    assert np.isfinite(evaluation.measure(Network(constant, {})).values["ridge/miou"])
    assert found.pictures["labels"].dtype == np.uint8


def test_a_ridge_is_the_same_in_other_batches_and_in_another_order_of_files(tmp_path):
    values = []
    for names, batch_size in ((None, 32), ([3, 1, 0, 2], 5)):
        data = colour_folder(tmp_path / str(batch_size), names=names)
        own = section(ridge_evaluator, train=data, val=data, size=40, batch_size=batch_size)
        found = ridge_evaluator.build(own, setting()).measure(raw_pixels(PATCH))
        values.append(found.values["ridge/miou"])
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_folders_of_the_run_are_taken_where_they_hold_maps(tmp_path):
    data = colour_folder(tmp_path)
    found = ridge_evaluator.build(section(ridge_evaluator, size=40), setting(bank=data, query=data))
    assert found.judge.num_classes == 3 and len(found.train) == 4
    assert (
        ridge_evaluator.build(section(ridge_evaluator), setting(bank=str(tmp_path / "no"))) is None
    )


def test_what_is_wrong_with_a_folder_is_said_before_any_pass(tmp_path):
    data = colour_folder(tmp_path)
    own = section(ridge_evaluator, train=data, val=data, size=40)
    with pytest.raises(ConfigError, match="ridge.val is empty"):
        ridge_evaluator.build(section(ridge_evaluator, train=data, size=40), setting())
    with pytest.raises(ConfigError, match="ridge.size=44 is no multiple of the patch of 8"):
        ridge_evaluator.build(section(ridge_evaluator, train=data, val=data, size=44), setting())
    (tmp_path / "maps/2.png").unlink()
    with pytest.raises(ConfigError, match="1 of 4 images have no map; the first is 2.png"):
        ridge_evaluator.build(own, setting())
    save(tmp_path / "maps/2.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(DecodeError, match="2.png: the map is 3 x 4, its image 40 x 48"):
        ridge_evaluator.build(own, setting()).measure(raw_pixels(PATCH))
    (tmp_path / "maps/2.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match="2.png: this map cannot be read"):
        ridge_evaluator.build(own, setting())
    with pytest.raises(ConfigError, match="must hold the folders images and maps"):
        ridge_evaluator.build(changed(own, train=str(tmp_path / "maps")), setting())


@pytest.mark.slow
def test_linear_heads_learn_colours_and_the_best_is_told(tmp_path):
    data = colour_folder(tmp_path, num=6)
    own = section(segmentation_evaluator, train=data, val=data, size=40, num_steps=60, warmup=5,
                  batch_size=4, rates=(1e-6, 3e-2), decays=(1e-3,), dropout=0.0)  # fmt: skip
    evaluation = segmentation_evaluator.build(own, setting())
    found = evaluation.measure(raw_pixels(PATCH))
    assert found.values["segmentation/miou"] > 70 and "rate 0.03" in found.told
    again = evaluation.measure(raw_pixels(PATCH))
    assert again.values == found.values


@pytest.mark.slow
def test_depth_that_is_a_colour_is_read_and_a_constant_is_not(tmp_path):
    rng = np.random.default_rng(2)
    for number in range(6):
        corners = Image.fromarray(rng.integers(40, 250, (2, 2), dtype=np.uint8))
        grey = np.asarray(corners.resize((48, 40), Image.Resampling.BILINEAR))
        save(tmp_path / f"images/{number}.png", np.repeat(grey[..., None], 3, axis=2))
        metres = (grey.astype(np.float64) / 50 * 1000).astype(np.uint16)
        metres[:4, :5] = 0  # not known
        save(tmp_path / f"maps/{number}.png", metres)
    own = section(depth_evaluator, train=str(tmp_path), val=str(tmp_path), size=40, max_depth=6.0,
                  num_steps=400, warmup=20, batch_size=4, rates=(3e-2,), decays=(1e-4,),
                  num_bins=32)  # fmt: skip
    evaluation = depth_evaluator.build(own, setting())
    found = evaluation.measure(raw_pixels(PATCH)).values["depth/rmse"]
    blind = evaluation.measure(Network(constant, {})).values["depth/rmse"]
    assert found < 0.6 * blind


def test_places_are_found_where_nothing_is_warped_and_not_by_noise():
    own = section(warps_evaluator, size=64, angle=0.0, scale=1.0, num=3)
    evaluation = warps_evaluator.build(own, with_images())
    found = evaluation.measure(raw_pixels(PATCH))
    assert found.values["warps/within1"] == 100 and "off by 0.00" in found.told
    assert {"matches0", "matches1"} <= found.pictures.keys()
    for batch_size in (1, 4):
        part = warps_evaluator.build(changed(own, batch_size=batch_size), with_images())
        assert part.measure(raw_pixels(PATCH)).values == found.values
    strange = changed(own, angle=30.0, scale=1.3)
    lost = warps_evaluator.build(strange, with_images()).measure(Network(noise, {}))
    assert lost.values["warps/within1"] < 25


def test_a_warp_moves_points_as_its_matrix_says():
    rows, columns = np.mgrid[:120, :120]
    dot = np.exp(-((rows - 50) ** 2 + (columns - 66) ** 2) / 8.0) * 255
    first, second, matrix = warps_evaluator.warped(
        np.repeat(dot[..., None], 3, axis=2).astype(np.uint8), 80, np.radians(25), 1.2
    )
    at = [np.array(np.unravel_index(v[..., 0].argmax(), (80, 80)))[::-1] for v in (first, second)]
    assert np.allclose(matrix[:, :2] @ at[0] + matrix[:, 2], at[1], atol=1.5)


def test_a_pan_is_followed_by_pixels_and_not_by_constants():
    own = section(pan_evaluator, size=64, frames=4, num=2, neighbors=1, temperature=0.05, context=3)
    blobs = dataclasses.replace(setting(), images=lambda: Textures(size=12))
    evaluation = pan_evaluator.build(own, blobs)
    found = evaluation.measure(raw_pixels(PATCH)).values
    blind = evaluation.measure(Network(constant, {})).values
    assert found["pan/jf"] > blind["pan/jf"] + 5
    assert found["pan/jf"] == pytest.approx((found["pan/j"] + found["pan/f"]) / 2)


def test_the_objects_of_a_pan_move_with_the_picture():
    frames, ids = pan_evaluator.pan(
        Textures()[0].pixels, 64, np.random.default_rng(5), frames=5, objects=2
    )
    assert frames.shape == (5, 64, 64, 3) and set(np.unique(ids)) == {0, 1, 2}
    assert not np.array_equal(frames[0], frames[-1])
    for number in (1, 2):  # the pixels of an object are those of the first frame
        seen = [np.sort(frames[t][ids[t] == number].ravel()) for t in (0, 4)]
        assert np.array_equal(*seen)


def boxes_folder(root, boxes):
    for name, (left, top, right, bottom) in boxes.items():
        pixels = np.full((56, 72, 3), (40, 200, 60), np.uint8)
        pixels[top:bottom, left:right] = (220, 40, 40)
        save(root / "images" / name, pixels)
    with (root / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([boxes_of.COLUMNS, *([n, *b] for n, b in boxes.items())])
    return str(root)


def test_rectangles_are_located_and_broken_tables_are_refused(tmp_path):
    data = boxes_folder(tmp_path, {"a.png": (16, 8, 48, 32), "b.png": (32, 24, 64, 48)})
    own = section(objects_evaluator, data=data, thresholds=(0.2,))
    found = objects_evaluator.build(own, setting()).measure(raw_pixels(PATCH))
    assert found.values["objects/corloc"] == 100 and found.num == 2
    with (tmp_path / "boxes.csv").open("a") as file:
        file.write("a.png,10,10,5,20\n")
    with pytest.raises(ConfigError, match=r"line 4: the box \[10.0, 10.0, 5.0, 20.0\] has no area"):
        objects_evaluator.build(own, setting())
    (tmp_path / "boxes.csv").write_text("name,left,top,right,bottom\na.png,1,1,9,9\n")
    with pytest.raises(ConfigError, match="b.png is not both in images and in boxes.csv"):
        objects_evaluator.build(own, setting())


def test_the_frame_of_depth_is_cut_from_what_is_learnt_and_from_what_is_judged(tmp_path):
    rng = np.random.default_rng(3)
    save(tmp_path / "images/0.png", rng.integers(0, 255, (375, 1242, 3), dtype=np.uint8))
    save(tmp_path / "maps/0.png", rng.integers(1, 9, (375, 1242)).astype(np.uint16) * 256)
    own = section(depth_evaluator, train=str(tmp_path), val=str(tmp_path), size=40,
                  per_metre=256.0, frame="kitti")  # fmt: skip
    evaluation = depth_evaluator.build(own, setting())
    stored = evaluation.val.read(0)
    for folder in (evaluation.train, evaluation.val):
        pixels, metres = evaluation.read(folder, 0)
        assert np.array_equal(pixels, stored[0][23:, 13:1229])
        assert np.array_equal(metres * 256, stored[1][23:, 13:1229])
    nyu = depth_evaluator.build(changed(own, frame="nyu"), setting())
    assert nyu.read(nyu.train, 0)[1].shape == (333, 1096)
    assert nyu.read(nyu.val, 0)[1].shape == (375, 1242)
    save(tmp_path / "images/0.png", stored[0][:340])
    save(tmp_path / "maps/0.png", stored[1][:340])
    with pytest.raises(
        DecodeError, match=r"maps/0\.png: 340 x 1242 .* depth\.frame=kitti asks for"
    ):
        evaluation.read(evaluation.val, 0)

"""Boxes as data: views of them, files that hold them, and what does not fit."""

import json

import numpy as np
import pytest

from dinojax.config import ConfigError
from dinojax.tasks import box_views, coco_ap, settings, train
from dinojax.tasks.box_judge import average_precision
from dinojax.tasks.box_views import View
from dinojax.tasks.coco_boxes import find, open_boxes
from dinojax.weights import run
from dinojax.weights.load import Backbone
from tests.support import pasted
from tests.support.detector import PATCH, SIDE, opened, random_backbone, sets


@pytest.fixture(scope="module")
def backbone():
    return random_backbone()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pasted.write(tmp_path_factory.mktemp("boxes"), {"train": 6, "val": 3}, SIDE)


def test_boxes_are_mirrored_cut_and_scaled_by_exact_arithmetic():
    corners = np.array([[2.0, 3, 10, 7], [11, 0, 12, 1]])
    view = View(np.zeros((8, 12, 3), np.uint8), corners, np.arange(2))
    assert box_views.mirrored(view).corners_N4.tolist() == [[2, 3, 10, 7], [0, 0, 1, 1]]
    part = box_views.cut(view, 4, 1, 4, 8)
    assert part.corners_N4.tolist() == [[1, 0, 8, 3]] and part.kept_N.tolist() == [0]
    assert part.pixels_HWC.shape == (4, 8, 3)
    assert box_views.scaled(part, (6, 4)).corners_N4.tolist() == [[0.5, 0, 4, 4.5]]
    assert box_views.long_side(40, 60, 64, 8) == (40, 64)


def test_what_a_box_holds_is_what_it_held_before():
    """A white box on black: where it is seen in the view is what its corners say."""
    sizes = set()
    for seed in range(40):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[10:34, 21:52] = 255
        view = View(pixels, np.array([[21.0, 10, 52, 34]]), np.arange(1))
        found = box_views.draw(view, np.random.default_rng(seed), (32, 64), PATCH)
        rows, columns = (np.flatnonzero(found.pixels_HWC[:, :, 0].max(a) > 127) for a in (1, 0))
        seen = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        assert np.abs(found.corners_N4[0] - seen).max() <= 0.51
        assert max(found.pixels_HWC.shape) <= 64 and not np.any(np.array(seen[:2]) < 0)
        sizes.add(found.pixels_HWC.shape)
    assert len(sizes) > 6  # those of whole images are of one shape


def test_a_batch_is_of_its_number_alone_and_holds_boxes_inside_its_images(folder):
    data = opened(folder)
    images, sizes, targets = data.batch(3)
    again = opened(folder).batch(3)
    assert np.array_equal(images, again[0]) and np.array_equal(targets.boxes_BT4, again[2][1])
    assert not np.array_equal(images, data.batch(4)[0])
    for image, size, boxes, count in zip(
        images, sizes, targets.boxes_BT4, targets.count_B, strict=True
    ):
        assert not image[size[0] :].any() and not image[:, size[1] :].any()
        middle, half = boxes[:count, :2], boxes[:count, 2:] / 2
        assert (middle - half >= -1e-4).all() and (middle + half <= size[::-1] + 1e-4).all()
        assert not boxes[count:].any() and (half > 0).all()


def test_public_and_own_layouts_hold_the_same_objects(tmp_path):
    own = pasted.write(tmp_path / "own", {"train": 3, "val": 2}, SIDE)
    public = pasted.write(tmp_path / "public", {"train": 3, "val": 2}, SIDE, public=True)
    first, second = (opened(path) for path in (own, public))
    assert first.fingerprint == second.fingerprint and second.val is not None
    assert first.train.classes == ((3, "rectangle"), (7, "disc"), (20, "triangle"))
    alone = own / "train"
    assert opened(alone).val is None and opened(alone).fingerprint == first.fingerprint
    content = json.loads((own / "train/annotations.json").read_text())
    rows = first.train.objects(1)
    mine = [row for row in content["annotations"] if row["image_id"] == 15]
    assert first.train.boxes_N4[rows].tolist() == [row["bbox"] for row in mine]
    ids = [first.train.classes[number][0] for number in first.train.class_N[rows]]
    assert ids == [row["category_id"] for row in mine]


def changed(folder, tmp_path, change):
    """A copy of the folder whose file of training was changed."""
    place = pasted.write(tmp_path / "data", {"train": 3}, SIDE)
    path = place / "train/annotations.json"
    content = json.loads(path.read_text())
    found = change(content, place)
    path.write_text(found if isinstance(found, str) else json.dumps(content))
    return place


def _box(*box):
    return lambda content, _: content["annotations"][1].update(bbox=list(box))


def _row(name, **values):
    return lambda content, _: content[name][1].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_box(5, 5, 0, 9), r"annotation 2 of|annotation 2 \(image .*has no area"),
        (_box(5, 5, 90, 9), r"annotation 2 \(image .*is not inside the image of 64 x"),
        (_box(-3, 5, 9, 9), r"annotation 2 \(image .*is not inside"),
        (_box(5, 5, 9), r"annotation 2 \(image .*bbox is \[5, 5, 9\]; four numbers"),
        (_box(5, 5, 9, "a"), r"annotation 2 \(image .*bbox\[3\] is 'a'; expected a number"),
        (_row("annotations", category_id=9), r"annotation 2 .*the class 9; the categories .*3"),
        (_row("annotations", image_id=9), r"annotation 2 is of image 9, which is not listed"),
        (_row("annotations", iscrowd=2), r"annotation 2 .*iscrowd is 2; 1 for a crowd, else 0"),
        (_row("annotations", id=1), r"annotation 1 is there twice"),
        (_row("images", id=5), r"image 5 is there twice"),
        (_row("images", file_name="0000.png"), r"0000\.png .*(twice|two images|has 48 rows)"),
        (_row("images", file_name="none.png"), r"image 15: none\.png is not in"),
        (_row("images", file_name="../a.png"), r"image 15: file_name '\.\./a\.png' leads out"),
        (_row("images", width=65), r"image 15: .*has 64 rows and 64 columns; the file says 64 and"),
        (_row("categories", id=7), r"category 7 is there twice"),
        (lambda content, _: "[]", r"is no COCO file of boxes: found \[\]"),
        (lambda content, _: "{", r"is not JSON"),
        (lambda content, _: content.pop("categories") and None, r"no 'categories'"),
        (lambda content, _: content["annotations"].clear(), r"holds no box to learn from"),
        (
            lambda content, place: (place / "train/images/0001.png").write_text("x") and None,
            r"image 15: .*0001\.png cannot be read",
        ),
    ],
)
def test_boxes_that_do_not_fit_are_told_by_file_and_id(
    backbone, folder, tmp_path, monkeypatch, change, message
):
    place, out = changed(folder, tmp_path, change), tmp_path / "run"
    monkeypatch.setattr(run, "load", lambda path: backbone)
    monkeypatch.setattr(Backbone, "run", None)  # before any device work
    with pytest.raises(ConfigError, match=message) as told:
        train.train("detect", backbone="b", data=str(place), run_dir=str(out), overrides=sets())
    assert "annotations.json" in str(told.value) and not out.exists()


def test_boxes_without_area_are_left_out_when_asked_and_rounding_is_cut(folder, tmp_path):
    def change(content, _):
        rows = content["annotations"]
        rows[0].update(bbox=[60.5, 4, 4, 10])  # half a pixel beyond the image
        rows[1].update(bbox=[5, 5, 0, 9])

    place = changed(folder, tmp_path, change)
    data = opened(place, leave_out="true")
    whole = json.loads((place / "train/annotations.json").read_text())["annotations"]
    assert len(data.train.boxes_N4) == len(whole) - 1
    assert data.train.boxes_N4[0].tolist() == [60.5, 4, 3.5, 10]


def test_a_crowd_is_not_learnt_and_a_detection_in_it_counts_neither_way(folder, tmp_path):
    def change(content, _):
        rows = content["annotations"]
        rows[0].update(bbox=[0, 0, 20, 20], area=400)
        rows.append({**rows[0], "id": 99, "bbox": [24, 0, 40, 40], "area": 900, "iscrowd": 1})

    place = changed(folder, tmp_path, change)
    file, images = find(str(place))["train"]
    truth = open_boxes(file, images, channels=3, leave_out=False)
    assert truth.crowd_N.sum() == 1 and truth.most[0] < len(truth.boxes_N4)
    data = opened(place)
    index = int(truth.image_N[truth.crowd_N][0])
    assert len(data._whole(index)[1]) == (truth.image_N == index).sum() - 1
    ids = np.array([number for number, _ in truth.classes])
    real = ~truth.crowd_N

    def ap50(*more):
        rows = [*zip(truth.image_N[real], ids[truth.class_N[real]], truth.boxes_N4[real],
                     [0.5] * real.sum(), strict=True), *more]  # fmt: skip
        columns = (np.array(column) for column in zip(*rows, strict=True))
        return average_precision(truth, coco_ap.Detected(*columns))["ap50"]

    category = int(ids[truth.class_N[truth.crowd_N]][0])
    sure = [np.array(box) for box in ([30.0, 2, 9, 9], [0.0, 30, 9, 9])]
    assert ap50() == pytest.approx(1)
    assert ap50((index, category, sure[0], 0.9)) == pytest.approx(1)  # in the crowd
    assert ap50((index, category, sure[1], 0.9)) < 0.9  # in nothing


def test_more_objects_than_queries_and_classes_of_val_alone_are_told(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"objects, for which many_queries must be at least \d+"):
        opened(folder, many_queries=3)
    place = pasted.write(tmp_path, {"train": 2, "val": 2}, SIDE)
    path = place / "val/annotations.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 90, "name": "square"})
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"has the category \(90, 'square'\), which"):
        opened(place)
    with pytest.raises(ConfigError, match="holds no boxes in COCO's form"):
        find(str(tmp_path / "val" / "images"))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("detect", "head=dpt", "head=dpt is not for detect; use detr"),
        ("segment", "head=detr", "head=detr is not for segment; use dpt"),
        ("detect", "width=40", "width=40 is no multiple of 32"),
        ("detect", "windows=6", "size=64 has 8 patches along a side: too few"),
        ("detect", "queries=900", "more than the 340 places of an image at size=64"),
        ("detect", "scale=1.5", "scale=1.5 is a share of size"),
    ],
)
def test_settings_of_a_detector_that_do_not_work_are_refused(task, change, message):
    key = change.split("=")[0]
    pairs = [pair for pair in sets() if not pair.startswith(f"{key}=")]
    with pytest.raises(ConfigError, match=message):
        settings.parse(task, [*pairs, change]).check(task, PATCH)

"""Public data sets in miniatures of exactly the layout that their authors publish."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data.decode import DecodeError
from dinojax.eval import (
    boxes,
    depth_evaluator,
    fewshot,
    knn_evaluator,
    layout_files,
    logreg,
    objects_evaluator,
    ridge_evaluator,
    segmentation_evaluator,
    spair_evaluator,
)
from dinojax.eval.baselines import raw_pixels
from dinojax.eval.imagenet_c import ALEXNET
from dinojax.eval.layouts import LAYOUTS
from dinojax.eval.map_folder import open_maps
from tests.support.dense import COLOURS, PATCH, changed, save, section, setting
from tests.support.miniatures import SHAPE, WNIDS, imagenet, keypoints_in, photograph, written


def ade20k(root):
    for name, folder, num in (("train", "training", 3), ("val", "validation", 2)):
        names = [f"{folder}/ADE_{name}_{n:08d}" for n in range(1, num + 1)]
        for one in names:
            cells = photograph(root, f"images/{one}.jpg")
            save(root / f"annotations/{one}.png", (cells + 1).astype(np.uint8))
        lines = [f"{one}.jpg" for one in reversed(names)]
        written(root, f"ADE20K_object150_{name}.txt", "\n".join(lines) + "\n")


def cityscapes(root):
    for name, num in (("train", 3), ("val", 2)):
        for n in range(num):
            stem = f"{name}/bochum/bochum_{n:06d}_000019"
            cells = photograph(root, f"leftImg8bit/{stem}_leftImg8bit.png").astype(np.uint8)
            cells[:2] = 255
            save(root / f"gtFine/{stem}_gtFine_labelTrainIds.png", cells)
            save(root / f"gtFine/{stem}_gtFine_labelIds.png", cells + 7)


def voc2012(root):
    top = root / "VOCdevkit/VOC2012"
    for name, num in (("train", 3), ("val", 2)):
        stems = [f"2007_{name}{n:06d}" for n in range(num)]
        for stem in stems:
            cells = photograph(top, f"JPEGImages/{stem}.jpg").astype(np.uint8)
            palette = Image.fromarray(cells).convert("P")
            palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            (top / "SegmentationClass").mkdir(exist_ok=True)
            palette.save(top / f"SegmentationClass/{stem}.png")
        written(top, f"ImageSets/Segmentation/{name}.txt", "\n".join(stems))


def nyu(root):
    for name, num in (("train", 3), ("test", 2)):
        lines = []
        for n in range(num):
            image, depth = (f"kitchen_0001/{kind}_{name}{n}" for kind in ("rgb", "sync_depth"))
            image, depth = f"{image}.jpg", f"{depth}.png"
            cells = photograph(root, f"NYU/{image}")
            save(root / f"NYU/{depth}", (1000 + 500 * cells).astype(np.uint16))
            lines.append(f"/{image} /{depth} 518.8579")
        written(root, f"NYU/nyu_{name}.txt", "\n".join(lines))


def kitti(root):
    for name, num in (("train", 3), ("test", 2)):
        drive = f"2011_09_26_drive_{num:04d}_sync"
        lines = [f"2011_09_26/{drive}/image_02/data/0000000099.png None 721.5377"]
        for n in range(num):
            image = f"2011_09_26/{drive}/image_02/data/{n:010d}.png"
            depth = f"{drive}/proj_depth/groundtruth/image_02/{n:010d}.png"
            cells = photograph(root, f"raw/{image}")
            save(root / f"gt/{depth}", (256 * (1 + cells)).astype(np.uint16))
            lines.append(f"{image} {depth} 721.5377")
        written(root, f"kitti_eigen_{name}.txt", "\n".join(lines))


MAPS = {"ade20k": ade20k, "cityscapes": cityscapes, "voc2012": voc2012}
DEPTH = {"nyu": nyu, "kitti": kitti}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_learnt_from_and_judged(tmp_path, name):
    MAPS[name](tmp_path)
    data = f"{name}:{tmp_path}"
    own = section(ridge_evaluator, train=data, val=data, size=40)
    evaluation = ridge_evaluator.build(own, setting())
    assert (len(evaluation.train), len(evaluation.judge.val)) == (3, 2)
    assert evaluation.judge.num_classes == LAYOUTS[name].facts["num_classes"]
    assert evaluation.judge.zero_is_unlabelled == (name == "ade20k")
    found = evaluation.measure(raw_pixels(PATCH))
    assert found.values["ridge/accuracy"] > 75 and found.num == 2
    published = LAYOUTS[name].parts["val"].num
    notes = evaluation.sources[1].notes
    assert notes[0].endswith(LAYOUTS[name].terms)
    assert f"2 found, {published:,} published" in notes[1]
    both = setting(bank=data, query=data)
    by_data = ridge_evaluator.build(section(ridge_evaluator, size=40), both)
    assert by_data.sources[0].fingerprint == evaluation.sources[0].fingerprint
    heads = section(segmentation_evaluator, train=data, val=data, size=40)
    num_classes = segmentation_evaluator.build(heads, setting()).num_classes
    assert num_classes == evaluation.judge.num_classes


@pytest.mark.parametrize("name", DEPTH)
def test_depth_is_in_metres_of_the_layout(tmp_path, name):
    DEPTH[name](tmp_path)
    data = f"{name}:{tmp_path}"
    own = section(depth_evaluator, train=data, val=data, size=40, per_metre=1.0)
    evaluation = depth_evaluator.build(own, setting())
    assert (len(evaluation.train), len(evaluation.val)) == (3, 2)
    depth = evaluation.depth(evaluation.val.read(0)[1])
    assert set(np.unique(depth)) <= ({1.0, 1.5, 2.0} if name == "nyu" else {1.0, 2.0, 3.0})
    segments = section(segmentation_evaluator, train=data, val=data, size=40)
    with pytest.raises(ConfigError, match="segmentation.train=.* has depth; this key takes ade20k"):
        segmentation_evaluator.build(segments, setting())


def test_what_does_not_fit_a_layout_is_said_before_any_pass(tmp_path):
    ade20k(tmp_path)
    data, options = f"ade20k:{tmp_path}", {"channels": 3, "key": "ridge.val", "learn": False}
    with pytest.raises(ConfigError, match=r"ADE20K_object150_val.txt cannot be read .* the root\?"):
        open_maps(f"ade20k:{tmp_path}/images", **options)
    with pytest.raises(ConfigError, match="has no split 'test'; it has train, val"):
        open_maps(f"ade20k/test:{tmp_path}", **options)
    with pytest.raises(ConfigError, match=r"holds nothing like leftImg8bit/val"):
        open_maps(f"cityscapes:{tmp_path}", **options)
    found = open_maps(data, **options)
    (tmp_path / "annotations/validation/ADE_val_00000002.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DecodeError, match="ADE_val_00000002.png: this map cannot be read"):
        found.read(1)
    own = section(ridge_evaluator, train=data, val=data, size=40)
    save(tmp_path / "annotations/training/ADE_train_00000001.png", np.full(SHAPE, 151, np.uint8))
    with pytest.raises(DecodeError, match="train_00000001.png: its labels run from 150 to 150"):
        ridge_evaluator.build(own, setting()).measure(raw_pixels(PATCH))
    (tmp_path / "annotations/validation/ADE_val_00000001.png").unlink()
    with pytest.raises(ConfigError, match="1 of 2 maps are not there, the first: .*00000001.png"):
        open_maps(data, **options)
    image = tmp_path / "images/training/ADE_train_00000002.jpg"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DecodeError, match="ADE_train_00000002.jpg"):
        open_maps(data, channels=3, key="k").read(1)


XML = "<annotation><object><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
XML += "</bndbox></object></annotation>"


def test_boxes_of_voc_begin_at_zero_and_crowds_of_coco_do_not_count(tmp_path):
    top = tmp_path / "VOCdevkit/VOC2007"
    pixels = np.full((*SHAPE, 3), COLOURS[1])
    pixels[8:32, 16:40] = COLOURS[0]
    for stem in ("000005", "000007"):
        save(top / f"JPEGImages/{stem}.jpg", pixels)
        written(top, f"Annotations/{stem}.xml", XML.format(17, 9, 40, 32))
    written(top, "ImageSets/Main/trainval.txt", "000005\n000007\n")
    own = section(objects_evaluator, data=f"voc2007_boxes:{tmp_path}", thresholds=(0.2,))
    evaluation = objects_evaluator.build(own, setting())
    assert evaluation.boxes[0].tolist() == [[16, 8, 40, 32]]
    assert "2 found, 5,011 published" in evaluation.sources[0].notes[1]
    assert evaluation.measure(raw_pixels(PATCH)).values["objects/corloc"] == 100
    written(top, "Annotations/000007.xml", "<annotation>")
    with pytest.raises(ConfigError, match="000007.xml: this annotation cannot be read"):
        objects_evaluator.build(own, setting())
    name = "COCO_train2014_000000000009.jpg"
    save(tmp_path / f"images/train2014/{name}", pixels)
    written(tmp_path, "coco_20k_filenames.txt", f"train2014/{name}\n")
    rows = [{"image_id": 9, "bbox": [16, 8, 24, 24], "iscrowd": 0},
            {"image_id": 9, "bbox": [0, 0, 5, 5], "iscrowd": 1}]  # fmt: skip
    content = {"images": [{"id": 9, "file_name": name}], "annotations": rows}
    written(tmp_path, "annotations/instances_train2014.json", json.dumps(content))
    files = layout_files.find(f"coco20k:{tmp_path}", key="k", kind="boxes", learn=False)
    assert [found.tolist() for found in boxes.of_layout(files)] == [[[16, 8, 40, 32]]]


def variants(root):
    """A folder for each set: V2 has the right colours; of the others some are of other classes."""
    for number in range(3):
        photograph(root, f"v2/{number}/a.jpeg", COLOURS[number])
    for number in (0, 2):
        photograph(root, f"r/{WNIDS[number]}/art_0.jpg", COLOURS[number])
        photograph(root, f"a/{WNIDS[number]}/0.1_x.jpg", COLOURS[1])  # the class that is not there
    photograph(root, f"sketch/{WNIDS[1]}/sketch_0.JPEG", COLOURS[1])
    for folder, colour in {"air_freshener": 2, "alarm_clock": 1, "unknown": 1}.items():
        photograph(root, f"objectnet/images/{folder}/0a.png", COLOURS[colour])
    maps = "objectnet/mappings"
    labels = {"air_freshener": "Air freshener", "alarm_clock": "Alarm clock", "unknown": "Other"}
    written(root, f"{maps}/folder_to_objectnet_label.json", json.dumps(labels))
    overlap = {"Air freshener": "great white; goldfish", "Alarm clock": "great white"}
    written(root, f"{maps}/objectnet_to_imagenet_1k.json", json.dumps(overlap))
    written(root, f"{maps}/pytorch_to_imagenet_2012_id.json", json.dumps({"0": 2, "1": 0, "2": 1}))
    written(root, f"{maps}/imagenet_to_label_2012_v2", "goldfish\ngreat white\ntench\n")


def knn_of(bank, query):
    own = setting(bank=bank, query=query, batch_size=4)
    own.config.data.mixture, own.config.data.path = (), ""
    keys = {key: row["default"] for key, row in knn_evaluator.KEYS.items()}
    keys |= {"neighbors": 1, "batch_size": 4}
    return knn_evaluator.build(SimpleNamespace(**keys), own), own


def test_sets_derived_from_imagenet_are_judged_by_what_is_right_there(tmp_path):
    imagenet(tmp_path / "in")
    variants(tmp_path)
    bank = f"imagenet:{tmp_path / 'in'}"
    wanted = {
        f"imagenet:{tmp_path / 'in'}": (100, 3),
        f"imagenet_real:{tmp_path / 'in'}": (50, 2),  # the first is wrong, the third right
        f"imagenet_v2:{tmp_path / 'v2'}": (100, 3),
        f"imagenet_r:{tmp_path / 'r'}": (100, 2),
        f"imagenet_sketch:{tmp_path / 'sketch'}": (100, 1),
        f"objectnet:{tmp_path / 'objectnet'}": (50, 2),
    }
    for query, (share, num) in wanted.items():
        evaluation, _ = knn_of(bank, query)
        found = evaluation.measure(raw_pixels(PATCH))
        assert (found.values["knn/cls"], found.num) == (share, num), query
    marks = {knn_of(bank, query)[0].sources[1].fingerprint for query in wanted}
    assert len(marks) == len(wanted)
    own, _ = knn_of(bank, f"imagenet_a:{tmp_path / 'a'}")
    answers = own.query.answers
    assert answers.columns == (0, 2) and answers.labels.tolist() == [0, 2]
    assert answers.hits(np.array([[0.1, 0.9, 0.2], [0.3, 0.9, 0.2]])).tolist() == [False, False]
    assert answers.hits(np.array([[0.2, 0.9, 0.1], [0.1, 0.9, 0.2]])).tolist() == [True, True]
    assert own.measure(raw_pixels(PATCH)).values["knn/cls"] == 50  # the best of the two inside


def test_other_probes_take_the_same_answers(tmp_path):
    imagenet(tmp_path / "in")
    variants(tmp_path)
    _, own = knn_of(f"imagenet:{tmp_path / 'in'}", f"imagenet_real:{tmp_path / 'in'}")
    few = section(fewshot, shots=(2,), draws=1, penalty=1.0)
    found = fewshot.build(few, own).measure(raw_pixels(PATCH))
    assert found.values["fewshot/2"] == 50 and found.num == 2
    images = fewshot.build(few, own).images
    scores = np.eye(3)[[1, 2]]
    _, test = images.extract(raw_pixels(PATCH), what="test")
    judged = logreg.judged("logreg", scores, images.answers(test), "told")
    assert judged.values == {"logreg/accuracy": 100.0}  # of several right classes no class mean


def test_classes_and_numbers_out_of_range_are_refused(tmp_path):
    imagenet(tmp_path / "in")
    variants(tmp_path)
    bank = f"imagenet:{tmp_path / 'in'}"
    photograph(tmp_path, "v2/7/a.jpeg", COLOURS[0])
    with pytest.raises(ConfigError, match=r"the folder 7 is no class; .* numbered 0..2"):
        knn_of(bank, f"imagenet_v2:{tmp_path / 'v2'}")
    photograph(tmp_path, "r/n99999999/a.jpg", COLOURS[0])
    with pytest.raises(ConfigError, match="1 classes are not among those learnt from, the first"):
        knn_of(bank, f"imagenet_r:{tmp_path / 'r'}")
    written(tmp_path / "in", "real.json", "[[1], [3]]")
    with pytest.raises(ConfigError, match="real.json: a label is not among the 3 classes"):
        knn_of(bank, f"imagenet_real:{tmp_path / 'in'}")
    written(tmp_path / "in", "real.json", "[[1]]")
    with pytest.raises(ConfigError, match="real.json has 1 lists and there is an image 3"):
        knn_of(bank, f"imagenet_real:{tmp_path / 'in'}")
    with pytest.raises(ConfigError, match="knn.bank names a layout: set both"):
        knn_of(bank, "")
    with pytest.raises(ConfigError, match="is there to be judged by"):
        knn_of(f"imagenet_v2:{tmp_path / 'v2'}", bank)


def test_corruptions_need_every_cell_and_give_mce(tmp_path):
    imagenet(tmp_path / "in")
    colours = {0: 0, 1: 1, 2: 0}  # the last class is told wrongly: an error of a third
    for name in ALEXNET:
        for level in range(1, 6):
            for number, wnid in enumerate(WNIDS):
                path = f"c/{name}/{level}/{wnid}/ILSVRC2012_val_{number + 1:08d}.JPEG"
                photograph(tmp_path, path, COLOURS[colours[number]])
    query = f"imagenet_c:{tmp_path / 'c'}"
    found = knn_of(f"imagenet:{tmp_path / 'in'}", query)[0].measure(raw_pixels(PATCH))
    assert found.values["knn/cls"] == pytest.approx(200 / 3)
    errors = [1 / 3 / mean for mean in ALEXNET.values()]
    assert found.values["knn/mce"] == pytest.approx(100 * np.mean(errors))
    for path in (tmp_path / "c/fog/3").rglob("*.JPEG"):
        path.unlink()
    with pytest.raises(ConfigError, match="has 74 of the 75 corruptions and levels"):
        knn_of(f"imagenet:{tmp_path / 'in'}", query)


def test_keypoints_of_spair_are_counted_by_class(tmp_path):
    keypoints_in(tmp_path)
    own = section(spair_evaluator, path=str(tmp_path), size=48, threshold=0.15)
    evaluation = spair_evaluator.build(own, setting())
    found = evaluation.measure(raw_pixels(PATCH))
    # A place is a patch's index without half a patch: 4 pixels off in both, 0.18 of the box's 32.
    assert found.values["spair/aeroplane"] == 0 and found.num == 2
    wide = spair_evaluator.build(changed(own, threshold=0.3), setting())
    found = wide.measure(raw_pixels(PATCH))
    assert found.values["spair/aeroplane"] == 100 and found.values["spair/bus"] < 100
    mean = (100 + found.values["spair/bus"]) / 2
    assert found.values["spair/pck"] == pytest.approx(mean)
    assert "2 pairs found, 12,234 published" in evaluation.sources[0].notes[1]
    with pytest.raises(ConfigError, match=r"PairAnnotation/val holds no pairs; is it the root\?"):
        spair_evaluator.build(changed(own, split="val"), setting())
    (tmp_path / "JPEGImages/bus/c.jpg").unlink()
    with pytest.raises(ConfigError, match="1 of 3 images are not there, the first: .*bus/c.jpg"):
        spair_evaluator.build(own, setting())


def test_every_layout_says_what_it_is():
    for name, layout in LAYOUTS.items():
        assert layout.kind in ("labels", "maps", "depth", "boxes", "videos"), name
        assert "http" in layout.terms and layout.parts
        assert all(bool(part.find) != bool(part.listed) for part in layout.parts.values()), name
    assert not layout_files.is_layout("/data/imagenet") and not layout_files.is_layout("gs://a")
    assert layout_files.is_layout("imagenet/val:/data")


@pytest.mark.parametrize(
    "annotation, message",
    [
        ({"image_id": 2, "bbox": [1, 2, 3, 4]}, "is of image 2, which is not listed"),
        ({"image_id": 1, "bbox": [1, 2, 3]}, "of image 1 is .*; four numbers are expected"),
    ],
)
def test_annotations_of_coco_that_fit_nothing_are_named(annotation, message, tmp_path):
    path = tmp_path / "instances.json"
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation]}
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        boxes._of_coco(path, ("a.jpg",))

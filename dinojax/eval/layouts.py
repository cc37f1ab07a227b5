"""The table of public data sets: where their files lie below a root, and how many there are.

`LAYOUT:ROOT` or `LAYOUT/SPLIT:ROOT` in place of a path opens one (layout_files.py). A further set
is a row. Counts are those that its authors publish, terms what they say of its use.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Part:
    """The files of a split, below the root.

    find: a glob of its images; or listed: a text file with a line for each, whose words are {0},
    {1}; then images: where the image of a line is, the first of these under which one is there.
    maps: where an image's map (boxes, annotation) is: of a line, or a pattern of the image's path
    and what replaces it. classes: a pattern whose group is the class of an image's path.
    """

    num: int | None  # images (of videos: videos) as published; None = not stated
    find: str = ""
    listed: str = ""
    images: tuple[str, ...] = ("{0}",)
    maps: tuple[str, ...] = ()
    classes: str = ""


@dataclasses.dataclass(frozen=True)
class Layout:
    """kind: labels | maps | depth | boxes | videos. facts: what readers need to know besides."""

    kind: str
    title: str
    terms: str
    parts: Mapping[str, Part]  # split -> files; the first to learn from, the last to be judged by
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _by_folder(find: str, num: int | None) -> Part:
    return Part(num, find, classes=r"([^/]+)/[^/]+$")


def _voc(name: str, year: int, folder: str, num: int) -> Part:
    root = f"VOCdevkit/VOC{year}"
    where = f"{root}/ImageSets/{name}.txt"
    ending = "xml" if folder == "Annotations" else "png"
    maps = (f"{root}/{folder}/{{0}}.{ending}",)
    return Part(num, listed=where, images=(f"{root}/JPEGImages/{{0}}.jpg",), maps=maps)


def _ade(name: str, num: int) -> Part:
    images, maps = ("{0}", "images/{0}"), (r"images/(.*)\.jpg$", r"annotations/\1.png")
    return Part(num, listed=f"ADE20K_object150_{name}.txt", images=images, maps=maps)


def _cityscapes(name: str, num: int) -> Part:
    find = f"leftImg8bit/{name}/*/*_leftImg8bit.png"
    maps = (r"leftImg8bit/(.*)_leftImg8bit\.png$", r"gtFine/\1_gtFine_labelTrainIds.png")
    return Part(num, find, maps=maps)


def _nyu(name: str, num: int) -> Part:
    return Part(num, listed=f"NYU/nyu_{name}.txt", images=("NYU/{0}",), maps=("NYU/{1}",))


def _kitti(name: str, num: int) -> Part:
    return Part(num, listed=f"kitti_eigen_{name}.txt", images=("raw/{0}",), maps=("gt/{1}",))


def _davis(name: str, num: int) -> Part:
    where = f"ImageSets/2017/{name}.txt"
    return Part(num, listed=where, images=("JPEGImages/480p/{0}",), maps=("Annotations/480p/{0}",))


def _train_videos(num: int) -> Mapping[str, Part]:
    """Of sets that publish the masks of one split alone."""
    maps = (r"JPEGImages/(.*)$", r"Annotations/\1")
    return {"train": Part(num, find="train/JPEGImages/*", maps=maps)}


IMAGENET_TERMS = "ImageNet: research that is not commercial; https://image-net.org/download"
LAYOUTS: dict[str, Layout] = {
    "imagenet": Layout(
        "labels",
        "ImageNet-1k",
        IMAGENET_TERMS,
        {
            "train": _by_folder("train/*/*.JPEG", 1_281_167),
            "val": _by_folder("val/*/*.JPEG", 50_000),
        },
        {"num_classes": 1000},
    ),
    "imagenet_real": Layout(
        "labels",
        "ImageNet ReaL (its labels, on ImageNet's validation images)",
        "labels Apache 2.0; https://github.com/google-research/reassessed-imagenet; "
        + IMAGENET_TERMS,
        {"val": _by_folder("val/*/*.JPEG", 50_000)},
        {"num_classes": 1000, "answers": "real"},
    ),
    "imagenet_v2": Layout(
        "labels",
        "ImageNet V2",
        "MIT (code); https://github.com/modestyachts/ImageNetV2",
        {"val": _by_folder("*/*.jpeg", 10_000)},
        {"num_classes": 1000, "answers": "numbered"},
    ),
    "imagenet_r": Layout(
        "labels",
        "ImageNet-R",
        "MIT (code); https://github.com/hendrycks/imagenet-r",
        {"val": _by_folder("*/*.jpg", 30_000)},
        {"num_classes": 200, "answers": "subset"},
    ),
    "imagenet_a": Layout(
        "labels",
        "ImageNet-A",
        "MIT (code); https://github.com/hendrycks/natural-adv-examples",
        {"val": _by_folder("*/*.jpg", 7_500)},
        {"num_classes": 200, "answers": "subset"},
    ),
    "imagenet_sketch": Layout(
        "labels",
        "ImageNet-Sketch",
        "MIT (code); https://github.com/HaohanWang/ImageNet-Sketch",
        {"val": _by_folder("*/*.JPEG", 50_889)},
        {"num_classes": 1000},
    ),
    "imagenet_c": Layout(
        "labels",
        "ImageNet-C",
        "CC BY 4.0; https://zenodo.org/records/2235448",
        {"val": _by_folder("*/[1-5]/*/*.JPEG", 75 * 50_000)},
        {"num_classes": 1000, "groups": r"([^/]+/[1-5])/[^/]+/[^/]+$", "answers": "corruptions"},
    ),
    "objectnet": Layout(
        "labels",
        "ObjectNet, the classes that it has in common with ImageNet",
        "never to train or tune on; https://objectnet.dev/download.html",
        {"val": _by_folder("images/*/*.png", None)},
        {"num_classes": 113, "answers": "objectnet", "border": 1},
    ),
    "ade20k": Layout(
        "maps",
        "ADE20K (150 classes)",
        "research and education, not commercial; https://ade20k.csail.mit.edu/terms/",
        {"train": _ade("train", 20_210), "val": _ade("val", 2_000)},
        {"num_classes": 150, "zero_is_unlabelled": True},
    ),
    "cityscapes": Layout(
        "maps",
        "Cityscapes, fine labels",
        "not commercial, with registration; https://www.cityscapes-dataset.com/license/",
        {"train": _cityscapes("train", 2_975), "val": _cityscapes("val", 500)},
        {"num_classes": 19},
    ),
    "voc2012": Layout(
        "maps",
        "PASCAL VOC 2012, segmentation",
        "Flickr's terms of use; http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        {
            "train": _voc("Segmentation/train", 2012, "SegmentationClass", 1_464),
            "val": _voc("Segmentation/val", 2012, "SegmentationClass", 1_449),
        },
        {"num_classes": 21},
    ),
    "voc2012_aug": Layout(
        "maps",
        "PASCAL VOC 2012 with the masks of SBD",
        "Flickr's terms of use; http://home.bharathh.info/pubs/codes/SBD/download.html",
        {
            "train": _voc("Segmentation/train_aug", 2012, "SegmentationClassAug", 10_582),
            "val": _voc("Segmentation/val", 2012, "SegmentationClass", 1_449),
        },
        {"num_classes": 21},
    ),
    "nyu": Layout(
        "depth",
        "NYU Depth v2 in the extraction of BTS",
        "see https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        {"train": _nyu("train", 24_231), "val": _nyu("test", 654)},
        {"per_metre": 1000.0},
    ),
    "kitti": Layout(
        "depth",
        "KITTI, Eigen's split with the improved ground truth",
        "CC BY-NC-SA 3.0; https://www.cvlibs.net/datasets/kitti/",
        {"train": _kitti("train", 23_158), "val": _kitti("test", 652)},
        {"per_metre": 256.0},
    ),
    "voc2007_boxes": Layout(
        "boxes",
        "PASCAL VOC 2007, trainval",
        "Flickr's terms of use; http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        {"trainval": _voc("Main/trainval", 2007, "Annotations", 5_011)},
    ),
    "voc2012_boxes": Layout(
        "boxes",
        "PASCAL VOC 2012, trainval",
        "Flickr's terms of use; http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        {"trainval": _voc("Main/trainval", 2012, "Annotations", 11_540)},
    ),
    "coco20k": Layout(
        "boxes",
        "COCO 20k of LOST",
        "annotations CC BY 4.0, images Flickr's terms of use; https://cocodataset.org/#termsofuse",
        {"train": Part(19_817, listed="coco_20k_filenames.txt", images=("images/{0}",))},
        {"boxes": "annotations/instances_train2014.json"},
    ),
    "davis2017": Layout(
        "videos",
        "DAVIS 2017",
        "see https://davischallenge.org/davis2017/code.html",
        {"train": _davis("train", 60), "val": _davis("val", 30)},
    ),
    "youtube_vos": Layout(
        "videos",
        "YouTube-VOS, whose training split alone has public masks",
        "see https://youtube-vos.org/dataset/",
        _train_videos(3_471),
    ),
    "mose": Layout(
        "videos",
        "MOSE, whose training split alone has public masks",
        "CC BY-NC-SA 4.0; https://henghuiding.github.io/MOSE/",
        _train_videos(1_507),
    ),
}

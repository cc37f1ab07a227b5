"""Open-vocabulary segmentation: every pixel to the class whose words its patch is nearest to.

Protocol: docs/text.md (DINOv3, arXiv:2508.10104, and its notebook). Mean IoU over the classes.
"""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.data.folder import folder
from dinojax.data.sources import read_options
from dinojax.eval.aligned import Aligned, lines, open_aligned
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.network import Network
from dinojax.text import dense
from dinojax.text.zeroshot import class_vectors, patch_half, prompts
from dinojax.weights.preprocess import Preprocessing

KEYS = {
    "every": {
        "default": None,
        "says": "steps of a text stage; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "images": {"default": "", "says": "folder of images; [P]"},
    "labels": {"default": "", "says": "folder of PNG files of class numbers, named alike; [P]"},
    "classes": {"default": "", "says": "FILE with the name of a class a line; [P]"},
    "templates": {
        "default": "imagenet",
        "says": "a template with {}, FILE with one a line, or imagenet (80 of CLIP); [P]",
    },
    "mode": {
        "default": "slide",
        "says": "slide (windows) | whole (the image at once); [P]",
        "choices": ("slide", "whole"),
    },
    "patches": {
        "default": "head",
        "says": "head (the vision head's) [P] | backbone (what the released notebook takes) [R]",
        "choices": ("head", "backbone"),
    },
    "resize": {"default": 512, "says": "pixels of the short side; [R]", "limits": (1, 16_384)},
    "side": {"default": 384, "says": "pixels of a window; [R]", "limits": (1, 16_384)},
    "stride": {"default": 192, "says": "pixels between windows; [R]", "limits": (1, 16_384)},
    "first": {
        "default": 0,
        "says": "value of the first class in the files; smaller ones count for nothing; [R] 1 in "
        "ADE20k and VOC",
        "limits": (0, 255),
    },
}


@dataclasses.dataclass(frozen=True)
class OpenVocabulary:
    """Of images beside their labels."""

    aligned: Aligned
    images: Source
    labels: tuple[Path, ...]
    names: tuple[str, ...]
    templates: tuple[str, ...]
    preprocessing: Preprocessing
    options: dict  # the rest of the section

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.images,)

    def measure(self, network: Network) -> Measured:
        texts = self.aligned.texts(network, prompts(self.names, self.templates))
        classes_CE = class_vectors(patch_half(texts), len(self.names))
        num = len(self.names)
        counts_CC = np.zeros((num, num), np.int64)
        for index, path in enumerate(self.labels):
            truth_HW = read_labels(path, first=self.options["first"], num=num)
            found_HW = self._predict(network, index, classes_CE, truth_HW.shape)
            counts_CC += confusion(truth_HW, found_HW, num)
        scores = ious(counts_CC)
        return Measured(
            {"openvocab/miou": 100.0 * float(np.nanmean(scores))},
            num=len(self.labels),
            told=f"{len(self.labels)} images, {num} classes, {self.options['mode']}, patches of "
            f"the {self.options['patches']}",
        )

    def _predict(self, network: Network, index: int, classes_CE, size) -> np.ndarray:
        options = self.options
        image_HWC = self.preprocessing(self.images[index].pixels)
        patch = self.aligned.networks.backbone.spec.patch_size

        def encode(images_BHWC):
            return self.aligned.patches(network, images_BHWC, of=options["patches"])

        if options["mode"] == "whole":
            scores = dense.whole(encode, image_HWC, classes_CE, patch)
        else:
            windows = {"side": options["side"], "stride": options["stride"]}
            scores = dense.sliding(encode, image_HWC, classes_CE, patch_size=patch, **windows)
        return np.asarray(dense.labels(scores, size))


def read_labels(path: Path, *, first: int, num: int) -> np.ndarray:
    """Class numbers int [H, W] from 0, -1 where none of the `num` counts."""
    with Image.open(path) as image:
        values_HW = np.asarray(image, np.int64)
    if values_HW.ndim != 2:
        raise ValueError(f"{path} has {values_HW.ndim} axes; labels are one number a pixel.")
    classes_HW = values_HW - first
    return np.where((classes_HW >= 0) & (classes_HW < num), classes_HW, -1)


def confusion(truth_HW: np.ndarray, found_HW: np.ndarray, num: int) -> np.ndarray:
    """Pixels of every true class (rows) found as every class, int64; truth -1 is left out."""
    counted = truth_HW >= 0
    pairs = truth_HW[counted] * num + found_HW[counted]
    return np.bincount(pairs, minlength=num * num).reshape(num, num)


def ious(counts_CC: np.ndarray) -> np.ndarray:
    """Intersection over union of every class; NaN for one that is neither there nor found."""
    hits = np.diag(counts_CC).astype(np.float64)
    union = counts_CC.sum(axis=0) + counts_CC.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def build(section, setting: Setting) -> OpenVocabulary | None:
    aligned = open_aligned(setting)
    if aligned is None or not section.images:
        return None
    for key in ("labels", "classes"):
        if not getattr(section, key):
            raise ConfigError(f"openvocab.{key} is empty; openvocab.images needs it.")
    config = setting.config
    images = folder(
        path=section.images,
        channels=config.image.channels,
        key="openvocab.images",
        options=read_options(config.data),
    )
    labels = [Path(section.labels) / Path(n).with_suffix(".png") for n in _names(images)]
    if missing := [path for path in labels if not path.exists()]:
        raise ConfigError(
            f"openvocab.labels={section.labels}: {len(missing)} of {len(labels)} images have no "
            f"labels, such as {missing[0]}."
        )
    own = setting.transform.preprocessing
    options = {
        "mode": section.mode,
        "patches": section.patches,
        "side": section.side,
        "stride": section.stride,
        "first": section.first,
    }
    return OpenVocabulary(
        aligned,
        images,
        tuple(labels),
        tuple(lines(section.classes, "classes")),
        tuple(lines(section.templates, "templates")),
        dataclasses.replace(own, crop_size=None, resize_size=section.resize),
        options,
    )


def _names(images: Source) -> list[str]:
    return [images.encoded(index).name for index in range(len(images))]

"""Open-vocabulary segmentation: every pixel to the class whose words its patch is nearest to.

Protocol: docs/text.md (DINOv3, arXiv:2508.10104, and its notebook). Mean IoU over the classes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.data.sources import read_options
from dinojax.eval.aligned import Aligned, lines, open_aligned
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.features import EvalTransform
from dinojax.eval.map_folder import MapFolder, has_maps, open_maps, pair_of
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import values_of
from dinojax.text import dense
from dinojax.text.zeroshot import class_vectors, patch_half, prompts
from dinojax.viz.label_colors import label_colors, side_by_side, with_names
from dinojax.weights.preprocess import Preprocessing

KEYS = {
    "every": {
        "default": None,
        "says": "steps of a text stage; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "data": {
        "default": "",
        "says": "folder of images/, maps/ of class numbers and classes.txt; empty = --data; [ours]",
    },
    "images": {"default": "", "says": "folder of images, where it is no data/images; [P]"},
    "labels": {"default": "", "says": "folder of their maps, named alike; [P]"},
    "classes": {
        "default": "",
        "says": "FILE with the name of a class a line; empty = classes.txt of the data; [P]",
    },
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


CLASSES = "classes.txt"
IGNORED = 255  # value of pixels that count for nothing, unless it is a class's
PICTURES = 4  # images shown


@dataclasses.dataclass(frozen=True)
class OpenVocabulary:
    """Of images beside their labels."""

    aligned: Aligned
    folder: MapFolder
    names: tuple[str, ...]
    templates: tuple[str, ...]
    preprocessing: Preprocessing
    section: Any

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.folder.images,)

    def measure(self, network: Network) -> Measured:
        """Columns openvocab/miou and accuracy, in percent of pixels of the maps as stored."""
        texts = self.aligned.texts(network, prompts(self.names, self.templates))
        classes_CE = class_vectors(patch_half(texts), len(self.names))
        num, first, areas, shown = len(self.names), self.section.first, [], []
        for index, path in enumerate(self.folder.maps):
            pixels_HWC, stored_HW = self.folder.read(index)
            truth_HW = class_numbers(stored_HW, first=first, num=num, name=str(path))
            found_HW = self._predict(network, pixels_HWC, classes_CE, truth_HW.shape)
            areas.append(areas_of(truth_HW, found_HW, num))
            if index < PICTURES:
                shown.append((pixels_HWC, truth_HW, found_HW))
        areas_N3C = np.stack(areas)
        return Measured(
            {"openvocab/miou": miou(areas_N3C), "openvocab/accuracy": accuracy(areas_N3C)},
            num=len(areas),
            told=f"{len(areas)} images, {num} classes, {self.section.mode}, patches of the "
            f"{self.section.patches}",
            samples={"openvocab/miou": areas_N3C},
            statistic=miou,
            pictures={"words": picture(shown, self.names)},
        )

    def _predict(self, network: Network, pixels_HWC, classes_CE, size) -> np.ndarray:
        own, image_HWC = self.section, self.preprocessing(pixels_HWC)
        patch = self.aligned.networks.backbone.spec.patch_size

        def encode(images_BHWC):
            return self.aligned.patches(network, images_BHWC, of=own.patches)

        if own.mode == "whole":
            scores = dense.whole(encode, image_HWC, classes_CE, patch)
        else:
            windows = {"side": own.side, "stride": own.stride}
            scores = dense.sliding(encode, image_HWC, classes_CE, patch_size=patch, **windows)
        return np.asarray(dense.labels(scores, size))


def class_numbers(stored_HW: np.ndarray, *, first: int, num: int, name: str) -> np.ndarray:
    """Classes int [H, W] from 0; -1 for values below `first` and IGNORED, which count for nothing.

    Raises ValueError, beginning with `name`, for a map with a class that has no name.
    """
    classes_HW = stored_HW.astype(np.int64) - first
    unnamed_HW = (classes_HW >= num) & (stored_HW != IGNORED)
    if unnamed_HW.any():
        raise ValueError(
            f"{name} holds the value {stored_HW[unnamed_HW].max()}, and openvocab.classes has "
            f"{num} names, the first for {first}; name every class, or set openvocab.first."
        )
    return np.where((classes_HW >= 0) & (classes_HW < num), classes_HW, -1)


def areas_of(truth_HW: np.ndarray, found_HW: np.ndarray, num: int) -> np.ndarray:
    """Pixels of each class that are rightly found, found, and there: int64 [3, C]; -1 left out."""
    truth_N, found_N = truth_HW[truth_HW >= 0], found_HW[truth_HW >= 0]
    parts = truth_N[truth_N == found_N], found_N, truth_N
    return np.stack([np.bincount(part, minlength=num) for part in parts])


def miou(areas_N3C: np.ndarray) -> float:
    """Percent, over classes that are found or there; NaN without a labelled pixel."""
    right_C, found_C, there_C = areas_N3C.sum(axis=0)
    union_C = found_C + there_C - right_C
    ious_C = right_C[union_C > 0] / union_C[union_C > 0]
    return 100.0 * float(ious_C.mean()) if len(ious_C) else float("nan")


def accuracy(areas_N3C: np.ndarray) -> float:
    """Percent of labelled pixels that are right; NaN without one."""
    right, _, there = areas_N3C.sum(axis=(0, 2))
    return 100.0 * right / there if there else float("nan")


def picture(shown: list, names: tuple[str, ...]) -> np.ndarray:
    """uint8 [H, W, 3]: image, what is there and what was found in a row, and the classes' names."""
    rows = [
        (pixels, *(label_colors(np.where(x < 0, IGNORED, x)) for x in (truth, found)))
        for pixels, truth, found in shown
    ]
    present = sorted({n for _, *maps in shown for x in maps for n in np.unique(x) if n >= 0})
    return with_names(side_by_side(rows), {n: names[n] for n in present})


def build(section, setting: Setting) -> OpenVocabulary | None:
    section = values_of(section, KEYS)
    aligned = open_aligned(setting)
    opened = None if aligned is None else _opened(section, setting)
    if aligned is None or opened is None:
        return None
    folder, names = opened
    transform: Any = setting.transform
    own = transform.preprocessing if isinstance(transform, EvalTransform) else transform
    whole = {"crop_size": None, "pad_size": None, "rule": "short", "resize_size": section.resize}
    return OpenVocabulary(
        aligned,
        folder,
        tuple(lines(names, "classes")),
        tuple(lines(section.templates, "templates")),
        dataclasses.replace(own, **whole),
        section,
    )


def _opened(section, setting: Setting) -> tuple[MapFolder, str] | None:
    """(images with their maps, where the names of classes are); None where none are named."""
    config = setting.config
    channels = config.image.channels
    if section.images or section.labels:
        for key in ("images", "labels", "classes"):
            if not getattr(section, key):
                raise ConfigError(f"openvocab.{key} is empty; openvocab.images and labels need it.")
        keys = "openvocab.images", "openvocab.labels"
        paths, options = (section.images, section.labels), read_options(config.data)
        return pair_of(*paths, channels=channels, keys=keys, options=options), section.classes
    places = [path for path in (config.knn.query, config.data.path) if has_maps(path)]
    path = section.data or next(iter(places), "")
    if not path:
        return None
    key = "openvocab.data" if section.data else "--data"
    names = section.classes or str(Path(path) / CLASSES)
    if not Path(names).exists() and names != "imagenet":
        if not section.data and not section.classes:
            return None  # a folder of maps for other evaluations
        raise ConfigError(f"{names} is missing: a file with the name of a class a line.")
    return open_maps(path, channels=channels, key=key), names

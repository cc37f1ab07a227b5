"""Segmentation by a ridge in closed form, for use during training: seconds, and no noise of SGD.

A number of this project (ridge.py), for checkpoints of one run; never set beside a published mIoU.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dinojax.data.example import Source
from dinojax.eval import ridge, segmentation_metrics, sliding
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.dense_pixels import nearest, resized, short_side
from dinojax.eval.map_folder import MapFolder, read_map
from dinojax.eval.map_probe import open_pair
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, patch_maps, values_of
from dinojax.ops.interpolate import resize
from dinojax.viz.label_colors import label_colors, side_by_side

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "train": {"default": "", "says": 'folder of images/ and maps/; "" = knn.bank; [ours]'},
    "val": {"default": "", "says": 'the same, to be judged by; "" = knn.query; [ours]'},
    "num_classes": {"default": 0, "says": "0 = largest label + 1; [ours]", "limits": (0, 65_000)},
    "zero_is_unlabelled": {"default": False, "says": "label 0 is ignored (ADE20k); [R]"},
    "size": {
        "default": 224,
        "says": "pixels of windows and of the short side; [ours]",
        "limits": (8, 16_384),
    },
    "batch_size": {"default": 32, "says": "windows per pass; [ours]", "limits": (1, 1_048_576)},
}
PICTURES = 4  # images shown


class Results(NamedTuple):
    """counts int64 [J, N, C, C] of each head and image; pictures of the first images."""

    counts: np.ndarray
    shown: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # image, truth, prediction [J, H, W]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Images and maps that heads of patches are judged by, over sliding windows."""

    val: MapFolder
    transform: Any
    patch_size: int
    size: int  # pixels of the short side and of a window
    batch_size: int
    num_classes: int
    zero_is_unlabelled: bool = False

    def labels(self, stored_HW: np.ndarray) -> np.ndarray:
        if self.zero_is_unlabelled:
            return segmentation_metrics.reduce_zero(stored_HW)
        return stored_HW.astype(np.int64)

    def windows(self, network: Network, pixels_HWC: np.ndarray):
        """(patches [N, h, w, D] of the windows, their places, (height, width) as resized)."""
        height, width, _ = pixels_HWC.shape
        size = short_side(height, width, self.size)
        stride = max(2 * self.size // 3, 1)
        places = sliding.windows(*size, crop=self.size, stride=stride)
        parts = sliding.cut(resized(pixels_HWC, size), places)
        seen = np.stack([as_seen(self.transform, part) for part in parts])
        options = {"patch_size": self.patch_size, "batch_size": self.batch_size}
        return patch_maps(network, seen, **options), places, size

    def results(self, network: Network, apply: Callable[[np.ndarray], np.ndarray]) -> Results:
        """apply: patches [N, h, w, D] -> scores [J, N, h, w, C]."""
        counts, shown = [], []
        for index in range(len(self.val)):
            pixels, stored = self.val.read(index)
            truth = self.labels(stored)
            self.val.check_labels(index, truth, self.num_classes)
            patches, places, size = self.windows(network, pixels)
            guesses = []
            for scores_NhwC in apply(patches):
                window = (self.size, self.size)
                parts = resize(jnp.asarray(scores_NhwC), window, method="bilinear", antialias=False)
                whole = sliding.stitched(np.asarray(parts), places, size)
                guesses.append(sliding.merged([sliding.probabilities(whole, truth.shape)]))
            counts.append(
                [segmentation_metrics.confusion(g, truth, self.num_classes) for g in guesses]
            )
            if index < PICTURES:
                shown.append((pixels, truth, np.stack(guesses)))
        return Results(np.array(counts).swapaxes(0, 1), shown)

    def metrics(self, counts_NCC: np.ndarray) -> dict[str, float]:
        return segmentation_metrics.segmentation_metrics(counts_NCC.sum(axis=0))

    def measured(self, name: str, results: Results, head: int, told: str) -> Measured:
        """Of one head: columns NAME/miou and NAME/accuracy in percent."""
        counts_NCC = results.counts[head]
        values = self.metrics(counts_NCC)
        picture = side_by_side(
            [
                (pixels, label_colors(truth), label_colors(guess[head]))
                for pixels, truth, guess in results.shown
            ]
        )
        return Measured(
            {f"{name}/{key}": 100 * values[key] for key in ("miou", "accuracy")},
            num=len(counts_NCC),
            told=told,
            samples={f"{name}/miou": counts_NCC},
            statistic=lambda counts_NCC: 100 * self.metrics(counts_NCC)["miou"],
            pictures={"labels": picture},
        )


@dataclasses.dataclass(frozen=True)
class RidgeSegmentation:
    """A ridge fitted on the windows of `train`."""

    train: MapFolder
    judge: Judged

    @property
    def sources(self) -> tuple[Source, Source]:
        return self.train.images, self.judge.val.images

    def measure(self, network: Network) -> Measured:
        """Columns ridge/miou and ridge/accuracy, in percent of pixels of the maps as stored."""
        weight_DC = ridge.fit_classes(self._batches(network), self.judge.num_classes)
        results = self.judge.results(network, lambda patches: (patches @ weight_DC)[None])
        told = f"{len(self.train)} images learnt from, {len(self.judge.val)} judged"
        return self.judge.measured("ridge", results, 0, told)

    def _batches(self, network: Network):
        for index in range(len(self.train)):
            pixels, stored = self.train.read(index)
            patches, places, size = self.judge.windows(network, pixels)
            labels_HW = self.judge.labels(stored)
            self.train.check_labels(index, labels_HW, self.judge.num_classes)
            labels_HW = nearest(labels_HW, size)
            yield patches, sliding.cut(labels_HW, places)


def build(section, setting: Setting) -> RidgeSegmentation | None:
    section = values_of(section, KEYS)
    found = open_pair(section, setting, "ridge")
    if found is None:
        return None
    train, val, section = found
    judge = Judged(
        val,
        setting.transform,
        patch_size=setting.patch_size,
        size=section.size,
        batch_size=section.batch_size,
        num_classes=section.num_classes or largest_label(train, section.zero_is_unlabelled) + 1,
        zero_is_unlabelled=section.zero_is_unlabelled,
    )
    return RidgeSegmentation(train, judge)


def largest_label(folder: MapFolder, zero_is_unlabelled: bool) -> int:
    """Of the maps of a folder."""
    largest = 0
    for path in folder.maps:
        labels = read_map(path)
        labels = segmentation_metrics.reduce_zero(labels) if zero_is_unlabelled else labels
        known = labels[labels != segmentation_metrics.IGNORE]
        largest = max(largest, int(known.max(initial=0)))
    return largest

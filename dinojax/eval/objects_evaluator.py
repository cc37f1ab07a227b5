"""Object discovery on a folder with boxes: TokenCut and CorLoc. DINOv3, arXiv:2508.10104, D.4."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.data.sources import SOURCES
from dinojax.eval import boxes as boxes_of
from dinojax.eval import layout_files
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.dense_pixels import resized
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, patch_maps, values_of
from dinojax.eval.tokencut import is_located, tokencut
from dinojax.viz.label_colors import as_rgb, side_by_side

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "data": {
        "default": "",
        "says": 'voc2007_boxes:ROOT, or a folder of images/ and boxes.csv; "" = none; [ours]',
    },
    "longest": {
        "default": 0,
        "says": "pixels of the longer side, where it is longer; 0 = as stored; [P] D.4",
        "limits": (0, 16_384),
    },
    "thresholds": {
        "default": (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
        "says": "of cosine, of which the best counts; [P] D.4",
        "many": "float",
        "limits": (-1, 1),
    },
}
PROTOCOLS = {"quick": {"longest": 224, "thresholds": (0.1, 0.2, 0.3)}}
BOXES = "boxes.csv"
PICTURES = 6


@dataclasses.dataclass(frozen=True)
class Objects:
    """Images with the boxes of their objects, in pixels of the images as stored."""

    images: Source
    boxes: tuple[np.ndarray, ...]  # [K, 4] of each image
    section: Any
    transform: Any
    patch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.images,)

    def measure(self, network: Network) -> Measured:
        """objects/corloc: percent of images with a box of IoU >= 0.5, at the best threshold.

        Images of one size share a compiled program, so that many sizes take long.
        """
        located, shown = [], []
        for index, boxes_K4 in enumerate(self.boxes):
            pixels = self.images[index].pixels
            maps, scale = self._patches(network, pixels)
            row = []
            for threshold in self.section.thresholds:
                found = tokencut(
                    maps,
                    threshold=threshold,
                    patch_size=self.patch_size,
                    image_size=tuple(round(s * scale) for s in pixels.shape[:2]),
                )
                box = np.array(found.box) / scale
                row.append(is_located(box.tolist(), boxes_K4))
                if threshold == self.section.thresholds[len(self.section.thresholds) // 2]:
                    shown.append((pixels, boxes_K4, box))
            located.append(row)
        located_NT = np.array(located)
        best_column = int(np.argmax(located_NT.mean(axis=0)))
        share = 100.0 * located_NT[:, best_column]
        threshold = self.section.thresholds[best_column]
        return Measured(
            {"objects/corloc": float(share.mean())},
            num=len(share),
            told=f"{len(share)} images; best of {located_NT.shape[1]} thresholds: {threshold:g}",
            samples={"objects/corloc": share},
            pictures={"boxes": side_by_side([[_drawn(*s)] for s in shown[:PICTURES]])},
        )

    def _patches(self, network: Network, pixels_HWC: np.ndarray) -> tuple[np.ndarray, float]:
        """(patches [h, w, D], pixels seen per pixel stored); zeros below and at the right."""
        height, width, _ = pixels_HWC.shape
        limit = self.section.longest or max(height, width)
        scale = min(1.0, limit / max(height, width))
        if scale < 1:
            pixels_HWC = resized(pixels_HWC, (round(height * scale), round(width * scale)))
        seen = as_seen(self.transform, pixels_HWC)
        fill = [(0, -side % self.patch_size) for side in seen.shape[:2]]
        seen = np.pad(seen, [*fill, (0, 0)])
        return patch_maps(network, seen[None], patch_size=self.patch_size, batch_size=1)[0], scale


def _drawn(pixels_HWC, boxes_K4, found_4) -> np.ndarray:
    """The image with the true boxes in green and the found one in red."""
    picture = Image.fromarray(np.ascontiguousarray(as_rgb(pixels_HWC)))
    draw, line = ImageDraw.Draw(picture), max(1, max(picture.size) // 100)
    for box, color in [*((b, (80, 220, 90)) for b in boxes_K4), (found_4, (235, 60, 50))]:
        draw.rectangle([float(v) for v in box], outline=color, width=line)
    return np.asarray(picture)


def build(section, setting: Setting) -> Objects | None:
    section = values_of(section, KEYS)
    if not section.data:
        return None
    if not section.thresholds:
        raise ConfigError("objects.thresholds needs at least one value.")
    channels, more = setting.config.image.channels, (section, setting.transform, setting.patch_size)
    if layout_files.is_layout(section.data):
        files = layout_files.find(section.data, key="objects.data", kind="boxes", learn=False)
        source = layout_files.source_of(files, channels=channels, key="objects.data")
        return Objects(source, boxes_of.of_layout(files), *more)
    root = Path(section.data)
    if not (root / "images").is_dir() or not (root / BOXES).is_file():
        raise ConfigError(f"objects.data={section.data} must hold the folder images and {BOXES}.")
    where = {"path": str(root / "images"), "key": "objects.data/images"}
    images: Any = SOURCES["folder"](channels=channels, **where)
    boxes = boxes_of.read_table(root / BOXES)
    names = images.files.names
    if lost := [name for name in names if name not in boxes] or [
        n for n in boxes if n not in names
    ]:
        raise ConfigError(
            f"objects.data={section.data}: {lost[0]} is not both in images and in {BOXES}"
            f" ({len(lost)} in all); every image needs a box, every box an image."
        )
    return Objects(images, tuple(boxes[name] for name in names), *more)

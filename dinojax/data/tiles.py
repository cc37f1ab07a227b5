"""A task that needs no download: tell 16 photographs apart by small tiles of them.

The photographs come with the packages scikit-image and scikit-learn (the extra `demo`). A tile is
a square of 48 to 110 pixels resized to 48, its label the photograph. Splits do not share a pixel:
`train` and `bank` lie in the left 60 % of a photograph, `val` (for choosing settings) and `test`
(for the final measurement only) in the upper and lower half of the rest, swapped in every second
photograph so that neither gets all the skies. Everything is fixed; no seed of a run changes it.
"""

import dataclasses
import hashlib
import importlib.util
import io
import os

import numpy as np
from PIL import Image

from dinojax.data.decode import CONVERTED, PLAIN, ReadOptions
from dinojax.data.example import Encoded, Example
from dinojax.data.tile_captions import SUBJECTS, captions_of

# Class name: package, path inside it. The order is the order of the labels.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
    "brick": ("skimage", "data/brick.png"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "camera": ("skimage", "data/camera.png"),
    "coins": ("skimage", "data/coins.png"),
    "page": ("skimage", "data/page.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
SPLITS = {"train": 4000, "bank": 1920, "val": 960, "test": 960}  # tiles
TILE_SIZE = 48  # pixels, stored
SIDES = (48, 110)  # pixels, smallest and largest square in the photograph
LEFT_SHARE = 0.6  # of the width, for train and bank

_SEED = 1603


@dataclasses.dataclass(frozen=True, eq=False)
class TileSource:
    """Tiles of one split in memory, uint8 [N, 48, 48, C]; tile i is of photograph i modulo 16."""

    pixels_NHWC: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str
    split: str
    notes: tuple[str, ...] = ()
    captioned: bool = False  # captions are made as tiles are read

    @property
    def channels(self) -> int:
        return self.pixels_NHWC.shape[3]

    def __len__(self) -> int:
        return len(self.pixels_NHWC)

    def __getitem__(self, index: int) -> Example:
        return self.read(index)

    def read(self, index: int, box_size: int | None = None) -> Example:
        """One tile; at 48 pixels it is left to the caller to fit it into a smaller box."""
        label, told = int(self.labels[index]), self._captions(index) if self.captioned else ()
        pixels_HWC = self.pixels_NHWC[index]
        return Example(pixels_HWC, label=label, name=self._name(index), captions=told)

    def encoded(self, index: int) -> Encoded:
        """One tile as a PNG."""
        file = io.BytesIO()
        Image.fromarray(self.pixels_NHWC[index].squeeze()).save(file, "PNG")
        label = int(self.labels[index])
        told = self._captions(index)
        return Encoded(file.getvalue(), label=label, name=self._name(index), captions=told)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Of every class, what its photograph shows, in the words of captions."""
        return tuple(SUBJECTS[name] for name in self.class_names)

    def _captions(self, index: int) -> tuple[str, ...]:
        return captions_of(self.pixels_NHWC[index], self.subjects[self.labels[index]])

    def read_options(self, index: int) -> ReadOptions:
        return PLAIN

    def _name(self, index: int) -> str:
        return f"{self.split} tile {index} ({self.class_names[self.labels[index]]})"


def tiles(
    *,
    path: str = "",
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> TileSource:
    """The tiles of one split, cut anew each time (about a second for 4,000).

    Raises ValueError for an unknown split, a path, or channels other than 1 and 3, and
    ModuleNotFoundError without the photographs' packages.
    """
    del options  # whole bytes of a known size
    if path:
        raise ValueError(f"{key}={path}: the embedded tiles take no path; use data.source=folder.")
    if split not in SPLITS:
        raise ValueError(
            f"the embedded tiles have no split {split!r}; choose of {', '.join(SPLITS)}."
        )
    if channels not in CONVERTED:
        raise ValueError(f"the embedded tiles have image.channels=1 or 3, got {channels}.")
    paths = [photograph_path(name) for name in PHOTOGRAPHS]
    draws = tile_draws(split)
    labels = np.arange(len(draws), dtype=np.int32) % len(paths)
    pixels_NHWC = np.zeros((len(draws), TILE_SIZE, TILE_SIZE, channels), np.uint8)
    digest = hashlib.sha256(repr((split, channels, SPLITS, SIDES, LEFT_SHARE, _SEED)).encode())
    for number, file in enumerate(paths):
        with open(file, "rb") as encoded:
            digest.update(hashlib.file_digest(encoded, "sha256").digest())
        with Image.open(file) as image:
            photograph = image.convert(CONVERTED[channels])
        region = split_region(split, number, photograph.size)
        for index in np.flatnonzero(labels == number):
            square = photograph.crop(tile_square(draws[index], region))
            tile = square.resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC)
            pixels_NHWC[index] = np.asarray(tile).reshape(TILE_SIZE, TILE_SIZE, channels)
    return TileSource(
        pixels_NHWC=pixels_NHWC,
        labels=labels,
        class_names=tuple(PHOTOGRAPHS),
        fingerprint=digest.hexdigest(),
        split=split,
    )


def photograph_path(name: str) -> str:
    """The file of one photograph, found without importing its (slow) package."""
    package, inside = PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the embedded tiles need the package {package}, which is not installed; "
            "run: pip install 'dinojax[demo]'"
        )
    path = os.path.join(spec.submodule_search_locations[0], inside)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"the installed package {package} lacks {inside}; install another version."
        )
    return path


def split_region(split: str, number: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels: where a split lies in photograph `number`."""
    width, height = size
    cut, middle = round(LEFT_SHARE * width), height // 2
    if split in ("train", "bank"):
        return 0, 0, cut, height
    upper = (split == "val") == (number % 2 == 0)
    return (cut, 0, width, middle) if upper else (cut, middle, width, height)


def tile_draws(split: str) -> np.ndarray:
    """Uniform numbers [N, 3] in [0, 1) for side, x and y; each split has its own stream."""
    generator = np.random.Generator(np.random.PCG64([_SEED, list(SPLITS).index(split)]))
    return generator.random((SPLITS[split], 3))


def tile_square(draw_3: np.ndarray, region: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of the square that three uniform numbers stand for."""
    left, top, right, bottom = region
    largest = min(SIDES[1], right - left, bottom - top)
    side = SIDES[0] + int(draw_3[0] * (largest - SIDES[0] + 1))
    x = left + int(draw_3[1] * (right - left - side + 1))
    y = top + int(draw_3[2] * (bottom - top - side + 1))
    return x, y, x + side, y + side

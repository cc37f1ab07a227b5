"""Which cosine says that two images are the same: measured on altered copies of one's own images.

Thresholds of published descriptors hold for these alone (Oquab et al., arXiv:2304.07193: 0.6 of
SSCD). So some images are drawn, altered as images are on the web, and sought in the whole pool:
found is a copy whose own image is above the threshold, false is every other image above it. Other
images of the pool that really are the same count as false too, so the precision is a lower bound.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from dinojax.curate.hashes import hash_of, numbers
from dinojax.curate.kmeans import seed_of
from dinojax.curate.parts import stored
from dinojax.curate.pool import ArrayRows, CenteredRows, Pool
from dinojax.curate.similar import near_pairs, num_blocks
from dinojax.data.decode import DecodeError
from dinojax.data.example import Source
from dinojax.data.progress import Progress
from dinojax.sharding.mesh import Layout
from dinojax.weights.load import Backbone

THRESHOLDS = np.round(
    np.concatenate([np.arange(0.5, 0.95, 0.01), np.arange(0.95, 0.9999, 0.0025)]), 4
)
RADII = (0, 2, 4, 6, 8)  # bits; pHash of ImageHash differs in even numbers
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Measured:
    """Counts of copies found, their number, and of other images found with them."""

    value: float  # threshold, or radius in bits
    found: int
    copies: int
    false: int

    @property
    def recall(self) -> float:
        return self.found / self.copies

    @property
    def precision(self) -> float:
        return self.found / max(1, self.found + self.false)

    @property
    def f1(self) -> float:
        return 2 * self.found / (self.copies + self.found + self.false)

    def told(self) -> dict[str, float]:
        return {"value": self.value, "recall": self.recall, "precision": self.precision}


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).copy()


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = [max(8, round(side * factor)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, share: float, x: float, y: float) -> Image.Image:
    """The part with `share` of both sides whose place is x, y in 0..1."""
    width, height = (max(8, round(side * share)) for side in image.size)
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    return image.crop((left, top, left + width, top + height))


# Name -> what is done to an image. The strengths are those of copies that a person calls the same.
COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 30": lambda image: _jpeg(image, 30),
    "JPEG 75": lambda image: _jpeg(image, 75),
    "half size": lambda image: _scaled(image, 0.5),
    "crop of 90 %": lambda image: _cropped(image, 0.9, 0.5, 0.5),
    "crop of 80 %, corner": lambda image: _cropped(image, 0.8, 0.1, 0.9),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.75),
}


def altered(pixels_HWC: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of an image of 1 or 3 channels, uint8; of others halves, crops and brighter ones only
    would be of one channel, so that there are none.
    """
    channels = pixels_HWC.shape[2]
    image = Image.fromarray(pixels_HWC if channels == 3 else pixels_HWC[:, :, 0])
    copies = {name: np.asarray(alter(image)) for name, alter in COPIES.items()}
    return {name: x if x.ndim == 3 else x[:, :, None] for name, x in copies.items()}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """cosine, hash: measures for each threshold and radius. by_copy: recall of each kind of copy at
    the best threshold.
    """

    cosine: list[Measured]
    hash: list[Measured]
    by_copy: dict[str, float]

    @property
    def threshold(self) -> float:
        """That with the best harmonic mean of precision and recall; of equal ones the highest."""
        return max(self.cosine, key=lambda m: (m.f1, m.value)).value

    def radius(self, least_precision: float = 0.98) -> int | None:
        """The largest radius that is that precise; None if none is."""
        fine = [m for m in self.hash if m.found and m.precision >= least_precision]
        return int(max(m.value for m in fine)) if fine else None

    def told(self) -> dict:
        return {
            "threshold": self.threshold,
            "hash_radius": self.radius(),
            "cosine": [m.told() for m in self.cosine],
            "hash": [m.told() for m in self.hash],
            "recall_by_copy": self.by_copy,
        }


def calibrate(
    apply: Callable[[np.ndarray], np.ndarray],
    backbone: Backbone,
    source: Source,
    pool: Pool,
    *,
    num: int,
    index_of: dict[str, int],
    center_D: np.ndarray,
    layout: Layout | None = None,
) -> Calibration:
    """Measures over copies of `num` images that are drawn from the pool.

    apply: gives embeddings of a batch. index_of: the number in the source of an image by its id.
    center_D: subtracted from all rows before cosines are taken.
    Raises ValueError for images of other than 1 or 3 channels.
    """
    if source.channels not in (1, 3):
        raise ValueError(
            f"copies of images of {source.channels} channels cannot be made; set dedup.threshold "
            "and dedup.hash_radius to numbers of your own, or to null."
        )
    rng = np.random.default_rng(seed_of("calibrate", len(pool)))
    own = np.sort(rng.choice(len(pool), min(num, len(pool)), replace=False))
    sources = [index_of[name] for name in pool.ids(own)]
    rows, owners, kinds, hashes = _copies(apply, backbone, source, sources)
    copies = CenteredRows(ArrayRows(stored(rows, pool.index["dtype"])), center_D)
    centered = CenteredRows(pool, center_D)
    edges = np.concatenate(
        [
            found
            for _, found in near_pairs(
                copies,
                centered,
                float(THRESHOLDS[0]),
                blocks=range(num_blocks(copies)),
                layout=layout,
            )
        ]
    )
    right = edges["other"] == own[owners[edges["row"]]]
    measures = []
    for threshold in THRESHOLDS:
        above = edges["cosine"] > threshold
        counts = int((above & right).sum()), len(copies), int((above & ~right).sum())
        measures.append(Measured(float(threshold), *counts))
    best = max(measures, key=lambda m: (m.f1, m.value)).value
    hit = np.unique(edges["row"][(edges["cosine"] > best) & right])
    by_copy = {kind: float(np.isin(np.flatnonzero(kinds == kind), hit).mean()) for kind in COPIES}
    pool_hashes = numbers([text for texts in pool.column("phash") for text in texts])
    return Calibration(measures, _hashes(hashes, own[owners], pool_hashes), by_copy)


def _copies(apply, backbone: Backbone, source: Source, indexes: list[int]):
    """(embeddings, number of the image, kind of copy, hash) of all copies."""
    images: list[np.ndarray] = []
    found, owners, kinds, hashes = [], [], [], []
    progress = Progress("calibrated on", len(indexes))

    def flush() -> None:
        num = len(images)
        filled = np.zeros((BATCH, *images[0].shape), np.float32)
        filled[:num] = images
        found.append(apply(filled)[:num])
        images.clear()

    for number, index in enumerate(indexes):
        try:
            copies = altered(source[index].pixels)
        except (DecodeError, OSError):
            continue  # it is in the list of bad images
        for kind, pixels in copies.items():
            images.append(np.asarray(backbone.preprocessing(pixels)))
            owners.append(number)
            kinds.append(kind)
            hashes.append(hash_of(pixels))
            if len(images) == BATCH:
                flush()
        progress.add()
    if images:
        flush()
    return np.concatenate(found), np.array(owners), np.array(kinds), numbers(hashes)


def _hashes(copies: np.ndarray, owners: np.ndarray, pool: np.ndarray) -> list[Measured]:
    """Each radius, of the pairs of a copy and an image of the pool."""
    found = []
    counts = np.zeros((len(RADII), 2), np.int64)  # right and other images
    for first in range(0, len(pool), 65_536):
        part = pool[first : first + 65_536]
        for number, copy in enumerate(copies):
            differing = np.bitwise_count(part ^ copy)
            own = owners[number] - first
            for at, radius in enumerate(RADII):
                near = differing <= radius
                right = int(0 <= own < len(part) and near[own])
                counts[at] += right, int(near.sum()) - right
    for radius, (right, other) in zip(RADII, counts.tolist(), strict=True):
        found.append(Measured(radius, right, len(copies), other))
    return found

"""Images that a linear probe is trained on: a random part of each, resized, mirrored or not.

Inception's crop, as in torchvision: a share of 0.08 to 1 of the area, an aspect of 3/4 to 4/3.
What an image becomes depends on the seed and on its place in the order of training alone.
"""

import dataclasses
import math

import numpy as np

from dinojax.data.decode import resize_pixels
from dinojax.data.example import Source
from dinojax.data.order import image_index
from dinojax.data.quarantine import BadImage, read_or_replace
from dinojax.eval.features import EvalTransform

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """Step -> (images_BHWC float32, labels int32 [B], images that could not be read).

    An image that cannot be read is replaced by another, with that one's class.
    """

    source: Source
    labels: np.ndarray  # of all images of the source
    indexes: np.ndarray  # of those that are trained on
    transform: EvalTransform
    batch_size: int
    seed: int
    own: frozenset[int]  # rows that this process reads; the others stay zeros

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, list[BadImage]]:
        size = self.transform.crop_size
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        picked = self.indexes[image_index(self.seed, positions, len(self.indexes))]
        images_BHWC = np.zeros((self.batch_size, size, size, self.source.channels), np.float32)
        bad = []
        for row, (index, position) in enumerate(zip(picked, positions, strict=True)):
            if row not in self.own:
                continue
            example, fault = read_or_replace(self.source, int(index), None)
            if fault is not None:
                bad.append(fault)
                picked[row] = fault.substitute
            rng = np.random.Generator(np.random.PCG64([self.seed, int(position)]))
            images_BHWC[row] = self.transform(random_crop(example.pixels, size, rng))
        return images_BHWC, self.labels[picked].astype(np.int32), bad


def random_crop(pixels_HWC: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part as [size, size, C], antialiased bicubic, mirrored half of the time."""
    height, width = pixels_HWC.shape[:2]
    top, left, rows, columns = crop_box(height, width, rng)
    part_HWC = pixels_HWC[top : top + rows, left : left + columns]
    part_HWC = resize_pixels(part_HWC, size, size)
    return part_HWC[:, ::-1] if rng.random() < 0.5 else part_HWC


def crop_box(
    height: int, width: int, rng: np.random.Generator, *, area: tuple[float, float] = AREA
) -> tuple[int, int, int, int]:
    """(top, left, height, width); the centre, of the nearest aspect, if ten draws do not fit.

    area: least and largest share of the image.
    """
    for _ in range(ATTEMPTS):
        pixels = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        columns, rows = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(rng.integers(0, height - rows + 1))
            return top, int(rng.integers(0, width - columns + 1)), rows, columns
    rows = min(height, round(width / ASPECT[0]))
    columns = min(width, round(height * ASPECT[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns

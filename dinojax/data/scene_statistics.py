"""What the bands of scenes hold: least, greatest, mean and deviation, without what is nodata.

Sums are float64, merged block by block by the rule of Chan, Golub and LeVeque (1979), so that a
large mean costs no digits of a small deviation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinojax.data.scene import Scene

BLOCK = 1024  # pixels of a side of what is read at once


@dataclasses.dataclass
class Moments:
    """Of some pixels [N, C]."""

    count: int
    mean_C: np.ndarray
    squares_C: np.ndarray  # sum of squared distances from the mean
    low_C: np.ndarray
    high_C: np.ndarray

    @classmethod
    def of(cls, values_NC: np.ndarray) -> "Moments":
        wide_NC = values_NC.astype(np.float64)
        mean_C = wide_NC.mean(axis=0)
        squares_C = np.square(wide_NC - mean_C).sum(axis=0)
        return cls(len(wide_NC), mean_C, squares_C, wide_NC.min(axis=0), wide_NC.max(axis=0))

    def __add__(self, other: "Moments") -> "Moments":
        count, apart_C = self.count + other.count, other.mean_C - self.mean_C
        share = other.count / count
        return Moments(
            count=count,
            mean_C=self.mean_C + apart_C * share,
            squares_C=self.squares_C + other.squares_C + apart_C**2 * self.count * share,
            low_C=np.minimum(self.low_C, other.low_C),
            high_C=np.maximum(self.high_C, other.high_C),
        )

    @property
    def std_C(self) -> np.ndarray:
        return np.sqrt(self.squares_C / self.count)


def statistics(scenes: Sequence[Scene], value_range: Sequence[float]) -> dict[str, Any]:
    """known (share of the pixels); low, high, mean, std of stored values, one per band; and of
    what a network sees of them (bytes by the range, as 0..1) image_mean and image_std, None where
    the values have no known range.

    Raises ValueError for scenes that are nodata everywhere.
    """
    stored: Moments | None = None
    seen: Moments | None = None
    for scene in scenes:
        has_range = bool(value_range) or scene.header.full is not None
        with scene.opened() as read:
            for top in range(0, scene.height, BLOCK):
                for left in range(0, scene.width, BLOCK):
                    size = min(BLOCK, scene.height - top), min(BLOCK, scene.width - left)
                    values_HWC, known_HW = read((top, left, *size))
                    values_NC = values_HWC[known_HW]
                    if not len(values_NC):
                        continue
                    stored = _merged(stored, values_NC)
                    if has_range:
                        bytes_N1C = scene.to_bytes(values_NC[:, None], value_range)
                        seen = _merged(seen, bytes_N1C[:, 0] / 255)
    if stored is None:
        raise ValueError(f"{scenes[0].path}: every pixel of every scene is nodata.")
    return {
        "known": stored.count / sum(scene.width * scene.height for scene in scenes),
        "low": stored.low_C.tolist(),
        "high": stored.high_C.tolist(),
        "mean": stored.mean_C.tolist(),
        "std": stored.std_C.tolist(),
        "image_mean": None if seen is None else seen.mean_C.tolist(),
        "image_std": None if seen is None else seen.std_C.tolist(),
    }


def _merged(so_far: Moments | None, values_NC: np.ndarray) -> Moments:
    found = Moments.of(values_NC)
    return found if so_far is None else so_far + found

"""A fixed grid of windows over a scene, and what a network says of each.

Windows of one size lie `size - 2 border` apart, the first one at the top left, the last one of an
axis where the scene ends. Of each window the inside is kept; its border, which lies inside of other
windows, is kept only where the scene ends. So what is found at a pixel depends on one window, and
this on the scene's size alone: not on how many windows are computed together, nor on how many
devices. Whatever looks no further than the border finds what it would in the whole scene.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dinojax.data.scene import Scene, starts
from dinojax.eval.patch_maps import as_seen
from dinojax.weights.preprocess import Preprocessing

BORDER = 6  # a window's side for one of its borders: insides are two thirds of it


@dataclasses.dataclass(frozen=True)
class Place:
    """A window's first pixel, and the rows and columns of the scene for which it is kept."""

    top: int
    left: int
    rows: tuple[int, int]
    columns: tuple[int, int]

    def inside(self, of_window: np.ndarray, step: int = 1) -> np.ndarray:
        """What is kept of an array [S, S, ...] over the window, at one entry for `step` pixels."""
        (first, last), (begin, end) = (
            ((low - at) // step, (high - at) // step)
            for at, (low, high) in ((self.top, self.rows), (self.left, self.columns))
        )
        return of_window[first:last, begin:end]


def border_of(size: int, patch_size: int) -> int:
    """Pixels around a window's inside: a sixth of it, in whole patches."""
    return size // BORDER // patch_size * patch_size


def places(height: int, width: int, *, size: int, border: int) -> list[Place]:
    """All windows of a scene, row by row; the parts that are kept tile it."""
    if not 0 <= 2 * border < size:
        raise ValueError(f"a border of {border} pixels leaves nothing of a window of {size}.")
    rows, columns = (_axis(side, size, border) for side in (height, width))
    return [Place(top, left, down, right) for top, down in rows for left, right in columns]


def _axis(side: int, size: int, border: int) -> list[tuple[int, tuple[int, int]]]:
    """(first pixel, (first, end of what is kept)) of the windows along an axis."""
    stride = size - 2 * border
    firsts = starts(side, size, stride)
    cuts = [0, *(number * stride + border for number in range(1, len(firsts))), side]
    return list(zip(firsts, zip(cuts, cuts[1:], strict=False), strict=True))


@dataclasses.dataclass(frozen=True)
class Seen:
    """How a window of a scene becomes what a network sees.

    Values become bytes by their range, as those of images do; nothing is resized. Pixels of nodata
    are 0 after normalising, the mean, whatever the file holds there.
    """

    scene: Scene
    preprocessing: Preprocessing
    value_range: tuple[float, ...]

    def __call__(self, values_HWC: np.ndarray, known_HW: np.ndarray) -> np.ndarray:
        """float32 [H, W, C] of stored values and where they are known."""
        seen_HWC = np.zeros(values_HWC.shape, np.float32)
        if known_HW.any():
            bytes_N1C = self.scene.to_bytes(values_HWC[known_HW][:, None], self.value_range)
            seen_HWC[known_HW] = as_seen(self.preprocessing, bytes_N1C)[:, 0]
        return seen_HWC


def predictions(
    seen: Seen,
    grid: list[Place],
    predict: Callable[[np.ndarray], Any],
    *,
    size: int,
    batch_size: int,
) -> Iterator[tuple[Place, np.ndarray, np.ndarray]]:
    """(place, known [S, S], found [S', S', ...]) of every window in which something is known.

    predict: normalised windows [B, S, S, C] -> an array [B, ...], always of as many windows, the
    last ones filled with zeros. The next ones are read while the devices compute. Raises ValueError
    for a scene that is nodata everywhere.
    """
    batch_size, is_empty = min(batch_size, len(grid)), True
    waiting: list[tuple[list, Any]] = []
    with contextlib.ExitStack() as stack:
        read = stack.enter_context(seen.scene.opened())
        batch: list[tuple[Place, np.ndarray]] = []
        images = np.zeros((batch_size, size, size, len(seen.scene.bands)), np.float32)
        for number, place in enumerate(grid, start=1):
            values_SSC, known_SS = read((place.top, place.left, size, size))
            if known_SS.any():
                images[len(batch)] = seen(values_SSC, known_SS)
                batch.append((place, known_SS))
                is_empty = False
            if len(batch) == batch_size or (batch and number == len(grid)):
                images[len(batch) :] = 0
                waiting.append((batch, predict(images)))
                batch, images = [], np.zeros_like(images)
            if len(waiting) > 1:
                yield from _ready(*waiting.pop(0))
    if is_empty:
        raise ValueError(f"{seen.scene.path}: every pixel is nodata; there is nothing to look at.")
    for done in waiting:
        yield from _ready(*done)


def _ready(batch, found) -> Iterator[tuple[Place, np.ndarray, np.ndarray]]:
    found = np.asarray(jax.device_get(found))
    for (place, known_SS), own in zip(batch, found, strict=False):
        yield place, known_SS, own

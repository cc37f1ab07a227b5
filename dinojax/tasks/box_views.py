"""A random view of an image with its boxes: mirrored, cut and resized, at the same places.

DINOv3, arXiv:2508.10104, D.9, but for the size: the long side is drawn, so that every view fits a
square. Boxes are corners (left, top, right, bottom) in pixels, float64.
"""

from typing import NamedTuple

import numpy as np

from dinojax.eval.dense_pixels import resized

_CUT = 0.6  # least share of the area that a cut keeps


class View(NamedTuple):
    """An image uint8 [H, W, C], corners [N, 4] of what is seen, and which objects these are."""

    pixels_HWC: np.ndarray
    corners_N4: np.ndarray
    kept_N: np.ndarray


def mirrored(view: View) -> View:
    """Left and right exchanged."""
    width = view.pixels_HWC.shape[1]
    left, top, right, bottom = view.corners_N4.T
    corners = np.stack([width - right, top, width - left, bottom], axis=-1)
    return View(view.pixels_HWC[:, ::-1], corners, view.kept_N)


def cut(view: View, top: int, left: int, height: int, width: int) -> View:
    """A part. Objects are cut with it; those of which nothing is left are no longer there."""
    pixels = view.pixels_HWC[top : top + height, left : left + width]
    corners = np.clip(
        view.corners_N4 - np.array([left, top, left, top], float)[None],
        0.0,
        np.array([width, height, width, height], float)[None],
    )
    there = np.all(corners[:, 2:] > corners[:, :2], axis=1)
    return View(pixels, corners[there], view.kept_N[there])


def scaled(view: View, size: tuple[int, int]) -> View:
    """At another (height, width)."""
    height, width = view.pixels_HWC.shape[:2]
    factor = np.array([size[1] / width, size[0] / height] * 2)
    return View(resized(view.pixels_HWC, size), view.corners_N4 * factor[None], view.kept_N)


def long_side(height: int, width: int, size: int, patch_size: int) -> tuple[int, int]:
    """(height, width) in whole patches, the long side at `size` at most, the other to nearest."""
    scale = size / max(height, width)
    return tuple(  # type: ignore[return-value]
        max(round(side * scale / patch_size), 1) * patch_size for side in (height, width)
    )


def draw(view: View, rng: np.random.Generator, sizes: tuple[int, int], patch_size: int) -> View:
    """Mirrored or not, cut to 60 to 100 % of its area or not, at a long side between `sizes`.

    sizes: in pixels, whole patches. The draws are asked for in a fixed order, needed or not.
    """
    mirror, is_cut = rng.uniform(size=2) < 0.5
    share, split = rng.uniform(_CUT, 1.0), rng.uniform()
    offsets = rng.uniform(size=2)
    least, most = (size // patch_size for size in sizes)
    size = int(rng.integers(least, most + 1)) * patch_size
    if mirror:
        view = mirrored(view)
    if is_cut:
        whole = view.pixels_HWC.shape[:2]
        sides = [
            max(round(n * share**s), 1) for n, s in zip(whole, (split, 1 - split), strict=True)
        ]
        starts = [int(u * (n - s + 1)) for u, n, s in zip(offsets, whole, sides, strict=True)]
        view = cut(view, starts[0], starts[1], sides[0], sides[1])
    height, width = view.pixels_HWC.shape[:2]
    return scaled(view, long_side(height, width, size, patch_size))

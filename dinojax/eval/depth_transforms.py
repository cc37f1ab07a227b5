"""What happens to an image and its depth before a depth head sees them.

DINOv3's released transforms. Values are 0..1 here, where segmentation's are 0..255; only the
colours work on 0..255.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from dinojax.ops.interpolate import resize

NYU_BOX = (43, 45, 608, 472)  # left, top, right, bottom of the part of 640 x 480 without a frame
KITTI_FRAME = (352, 1216)  # height and width, at the bottom and in the middle


def frame(name: str, height: int, width: int, *, learn: bool) -> tuple[slice, slice]:
    """Rows and columns of an image that are used, by its name: whole, nyu or kitti.

    nyu: learnt from without the white border, judged whole (DINOv3's released transforms). kitti:
    the part that the benchmark of KITTI has, in both; all its images have it, whatever their size.
    learn: of images to learn from. Raises ValueError for an image that does not hold the part.
    """
    if name == "nyu" and learn:
        left, top, right, bottom = scaled_box(NYU_BOX, height, width)
        return slice(top, bottom), slice(left, right)
    if name == "kitti":
        rows, columns = KITTI_FRAME
        if height < rows or width < columns:
            raise ValueError(f"{height} x {width} pixels hold no part of {rows} x {columns}")
        left = (width - columns) // 2
        return slice(height - rows, height), slice(left, left + columns)
    return slice(None), slice(None)


def scaled_box(box, height: int, width: int, of: tuple[int, int] = (480, 640)) -> tuple[int, ...]:
    """(left, top, right, bottom) of a box of an image of size `of` in one of another size."""
    left, top, right, bottom = box
    x, y = (
        [int(v / full * new) for v in pair]
        for pair, full, new in (
            ((left, right), of[1], width),
            ((top, bottom), of[0], height),
        )
    )
    return x[0], y[0], x[1], y[1]


def depth_view(
    image_HWC: np.ndarray, *, mean, std, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Normalised float32 for evaluation; resized (antialiased bilinear, on floats) if asked to."""
    values = image_HWC.astype(np.float32) / 255
    if size is not None:
        values = np.asarray(
            resize(jnp.asarray(values)[None], size, method="bilinear", antialias=True)[0]
        )
    return (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def mean_of_flips(depth_BHW: np.ndarray, mirrored_BHW: np.ndarray) -> np.ndarray:
    """Depth of images, averaged with that of the mirrored images turned back."""
    return (depth_BHW + mirrored_BHW[:, :, ::-1]) / 2


def coloured(image_HWC: np.ndarray, rng: Any, *, brightness: tuple[float, float]) -> np.ndarray:
    """Values 0..1 with gamma, brightness and each channel changed.

    Gamma bends values of 0..255, where 0.9 and 1.1 change the brightness a lot: so is it released.
    """
    bent_HWC = (image_HWC * 255) ** rng.uniform(0.9, 1.1) * rng.uniform(*brightness)
    values = bent_HWC * np.array([rng.uniform(0.9, 1.1) for _ in range(image_HWC.shape[2])])
    return np.clip(values, 0, 255) / 255


@dataclasses.dataclass(frozen=True)
class DepthTrainTransform:
    """A random view of an image and its depth: (float32 [*crop, C], float32 [*crop])."""

    crop: tuple[int, int]  # height and width
    normalize: Callable[[np.ndarray], np.ndarray]  # of values 0..1
    angle: float = 2.5  # degrees to both sides, at rate 0.5
    brightness: tuple[float, float] = (0.9, 1.1)  # NYU: 0.75, 1.25

    def __call__(self, image_HWC: np.ndarray, depth_HW: np.ndarray, rng: Any):
        """Raises ValueError for an image smaller than the crop."""
        if any(side < crop for side, crop in zip(depth_HW.shape, self.crop, strict=True)):
            raise ValueError(
                f"depth map of {depth_HW.shape} is smaller than a crop of {self.crop}."
            )
        image: np.ndarray = image_HWC.astype(np.float32) / 255
        depth: np.ndarray = depth_HW.astype(np.float32)
        if rng.random() < 0.5:
            angle = rng.uniform(-self.angle, self.angle)
            image = ndimage.rotate(image, angle, reshape=False, order=1)
            depth = ndimage.rotate(depth, angle, reshape=False, order=0)  # 0 = no depth known
        if rng.random() < 0.5:
            image, depth = image[:, ::-1], depth[:, ::-1]
        top, left = (
            int(rng.integers(side - crop + 1))
            for side, crop in zip(depth.shape, self.crop, strict=True)
        )
        image, depth = (
            x[top : top + self.crop[0], left : left + self.crop[1]] for x in (image, depth)
        )
        if rng.random() < 0.5:
            image = coloured(image, rng, brightness=self.brightness)
        return self.normalize(image).astype(np.float32), depth

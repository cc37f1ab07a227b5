"""Correspondence under known warps: does a patch find the same place of a turned and scaled image?

Two views of each photograph, the second rotated and scaled by known amounts. Every patch of the
first whose place is in the second is matched to its most similar patch there. Needs no labels.
A number of this project, for checkpoints of one run; NAVI and SPair-71k are other tasks.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from dinojax.eval.contract import Measured, Setting
from dinojax.eval.correspondence import nearest_two
from dinojax.eval.dense_pixels import resized, short_side
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, patch_maps, values_of
from dinojax.eval.photographs import Photographs, open_photographs
from dinojax.viz.match_lines import match_lines

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "images": {"default": "", "says": 'folder of images; "" = those of training; [ours]'},
    "num": {
        "default": 64,
        "says": "images, the first of a fixed order; [ours]",
        "limits": (1, None),
    },
    "size": {"default": 224, "says": "pixels of a view; [ours]", "limits": (8, 16_384)},
    "angle": {
        "default": 30.0,
        "says": "largest rotation to both sides, degrees; [ours]",
        "limits": (0, 180),
    },
    "scale": {
        "default": 1.3,
        "says": "largest factor of size, and its inverse; [ours]",
        "limits": (1, 8),
    },
    "batch_size": {"default": 32, "says": "views per pass; [ours]", "limits": (1, 1_048_576)},
}
SEED = 7123  # of the order of images and of the warps; part of the number's meaning
PICTURES = 2


@dataclasses.dataclass(frozen=True)
class Warps(Photographs):
    """Pairs of views of the images of a source."""

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(view uint8 [S, S, C], warped view, matrix [2, 3] of pixels (x, y) of the first)."""
        pairs = []
        for index, example in self.read(SEED, "warps"):
            rng = np.random.default_rng((SEED, index))  # whatever the number of images
            angle = np.radians(rng.uniform(-self.section.angle, self.section.angle))
            limit = np.log(self.section.scale)
            pairs.append(
                warped(example.pixels, self.section.size, angle, np.exp(rng.uniform(-limit, limit)))
            )
        return pairs

    def measure(self, network: Network) -> Measured:
        """Columns warps/within1 and within2 (percent of matches off by at most 1 or 2 patches)."""
        pairs = self.pairs()
        views = np.stack([as_seen(self.transform, view) for pair in pairs for view in pair[:2]])
        maps = patch_maps(
            network, views, patch_size=self.patch_size, batch_size=self.section.batch_size
        )
        errors, pictures = [], {}
        for number, (first, second, matrix) in enumerate(pairs):
            found = match_errors(maps[2 * number], maps[2 * number + 1], matrix, self.patch_size)
            errors.append(found[0])
            if number < PICTURES:
                pictures[f"matches{number}"] = match_lines(first, second, *found[1:])
        every_M = np.concatenate(errors)
        per_image = [100.0 * np.mean(e <= 1) for e in errors if len(e)]
        means = {
            n: float(np.mean([100.0 * np.mean(e <= n) for e in errors if len(e)])) for n in (1, 2)
        }
        values = {f"warps/within{n}": value for n, value in means.items()}
        return Measured(
            values,
            num=len(per_image),
            told=f"{len(per_image)} images, {len(every_M)} patches, off by {np.mean(every_M):.2f}",
            samples={"warps/within1": np.array(per_image)},
            pictures=pictures,
        )


def warped(pixels_HWC: np.ndarray, size: int, angle: float, scale: float):
    """(centre of an image, its centre turned and scaled, the matrix from one to the other).

    Both are cut from the whole image, so that the turned one has no empty corners where the image
    is large enough; else its border is mirrored.
    """
    height, width, _ = pixels_HWC.shape
    large = resized(pixels_HWC, short_side(height, width, round(1.5 * size)))
    middle = (np.array(large.shape[:2]) - 1) / 2
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    turn = np.array([[cosine, -sine], [sine, cosine]])  # of (x, y) around the middle
    inverse_yx = np.linalg.inv(turn)[::-1, ::-1]
    half = (size - 1) / 2
    first = _cut(large, middle, np.eye(2), half, size)
    second = _cut(large, middle, inverse_yx, half, size)
    offset = half - turn @ np.array([half, half])
    return first, second, np.concatenate([turn, offset[:, None]], axis=1)


def _cut(large: np.ndarray, middle, inverse_yx, half: float, size: int) -> np.ndarray:
    offset = middle - inverse_yx @ np.array([half, half])
    bands = [
        ndimage.affine_transform(
            large[..., c].astype(np.float32),
            inverse_yx,
            offset,
            output_shape=(size, size),
            order=1,
            mode="mirror",
        )
        for c in range(large.shape[2])
    ]
    return np.round(np.clip(np.stack(bands, axis=-1), 0, 255)).astype(np.uint8)


def match_errors(first_hwD, second_hwD, matrix_23, patch_size: int):
    """(error in patches, place in the first [K, 2], place found in the second, true place).

    Of the patches of the first view whose middle is inside the second one.
    """
    height, width, _ = first_hwD.shape
    rows, columns = np.mgrid[:height, :width]
    middles = (np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5) * patch_size - 0.5
    true = middles @ matrix_23[:, :2].T + matrix_23[:, 2]
    limit = np.array([second_hwD.shape[1], second_hwD.shape[0]]) * patch_size - 0.5
    inside = np.all((true >= -0.5) & (true <= limit), axis=1)
    flat = [x.reshape(-1, x.shape[-1]) for x in (first_hwD, second_hwD)]
    index, _ = nearest_two(flat[0], flat[1])
    found = np.stack([index % second_hwD.shape[1], index // second_hwD.shape[1]], axis=1)
    found = (found + 0.5) * patch_size - 0.5
    # Along the axis that is off more: a place on the border of two patches is within half of one.
    error = np.max(np.abs(found - true), axis=1) / patch_size
    return error[inside], middles[inside], found[inside], true[inside]


def build(section, setting: Setting) -> Warps | None:
    section = values_of(section, KEYS)
    images = open_photographs(section, setting, "warps")
    return None if images is None else Warps(images, section, setting)

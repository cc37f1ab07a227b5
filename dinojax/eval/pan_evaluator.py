"""Label propagation along a synthetic pan over photographs, with J and F against what is true.

A window moves over a photograph by a known number of pixels per frame; some rectangles of the
photograph are the objects of the first frame, and where they are later is known. No labels needed.
A number of this project, for checkpoints of one run; DAVIS is another task.
"""

import dataclasses

import numpy as np

from dinojax.eval import video_metrics
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.dense_pixels import resized, short_side
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, values_of
from dinojax.eval.photographs import Photographs, open_photographs
from dinojax.eval.propagation_evaluator import follow
from dinojax.viz.label_colors import label_colors, side_by_side

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "images": {"default": "", "says": 'folder of images; "" = those of training; [ours]'},
    "num": {
        "default": 16,
        "says": "images, the first of a fixed order; [ours]",
        "limits": (1, None),
    },
    "size": {"default": 224, "says": "pixels of a frame; [ours]", "limits": (8, 16_384)},
    "frames": {"default": 8, "says": "of a pan; [ours]", "limits": (3, 4096)},
    "objects": {"default": 3, "says": "rectangles of the first frame; [ours]", "limits": (1, 64)},
    "context": {
        "default": 7,
        "says": "frames before the current one; [P] D.5",
        "limits": (0, 1024),
    },
    "radius": {"default": 12.0, "says": "patches; [P] D.5", "limits": (0, None)},
    "shape": {
        "default": "square",
        "says": "of the neighbourhood: square | circle; [P] D.5",
        "choices": ("square", "circle"),
    },
    "neighbors": {
        "default": 5,
        "says": "patches that pass their labels on; [P] D.5",
        "limits": (1, None),
    },
    "temperature": {"default": 0.2, "says": "of their weights; [P] D.5", "limits": (1e-6, None)},
    "batch_size": {"default": 32, "says": "frames per pass; [ours]", "limits": (1, 1_048_576)},
}
SEED = 7124  # of the order of images, paths and objects; part of the number's meaning
SHARE = 0.5  # of a frame's side that the window moves in all
PICTURES = 2


@dataclasses.dataclass(frozen=True)
class Pans(Photographs):
    """Videos made of the images of a source."""

    def measure(self, network: Network) -> Measured:
        """Columns pan/jf, j and f, in percent, over objects; the first and last frame left out."""
        scores, pictures = [], {}
        for number, (index, example) in enumerate(self.read(SEED, "pans")):
            own = self.section
            video = pan(
                example.pixels,
                own.size,
                np.random.default_rng((SEED, index)),
                frames=own.frames,
                objects=own.objects,
            )
            guessed_THW = self._followed(network, *video)
            scores.append(object_means(guessed_THW, video[1], own.objects))
            if number < PICTURES:
                pictures[f"pan{number}"] = _sheet(video[0], video[1], guessed_THW)
        j_N, f_N = (np.array(values) for values in zip(*scores, strict=True))
        jf_N = (j_N + f_N) / 2
        return Measured(
            {f"pan/{n}": float(v.mean()) for n, v in (("jf", jf_N), ("j", j_N), ("f", f_N))},
            num=len(jf_N),
            told=f"{len(jf_N)} pans of {self.section.frames} frames",
            samples={"pan/jf": jf_N},
            pictures=pictures,
        )

    def _followed(self, network: Network, frames_THWC, ids_THW) -> np.ndarray:
        """Ids [T, H, W] from those of the first frame."""
        own = self.section
        seen = np.stack([as_seen(self.transform, frame) for frame in frames_THWC])
        guesses = follow(
            network,
            seen,
            ids_THW[0],
            section=own,
            patch_size=self.patch_size,
            objects=own.objects,
        )
        return np.stack([ids_THW[0], *guesses])


def pan(pixels_HWC: np.ndarray, size: int, rng, *, frames: int, objects: int):
    """(frames uint8 [T, S, S, C], ids [T, S, S]) of a window that moves in a line.

    Objects are rectangles that stay in view; 0 is the rest. Those drawn later lie on top.
    """
    height, width, _ = pixels_HWC.shape
    large = resized(pixels_HWC, short_side(height, width, round((1 + SHARE) * size)))
    room = np.array(large.shape[:2]) - size
    travel = np.minimum(room, round(SHARE * size))
    direction = np.array([rng.choice([-1, 0, 1]), rng.choice([-1, 1])])
    ends = np.where(direction >= 0, 0, travel), np.where(direction > 0, travel, 0)
    ends = (ends[0], np.where(direction == 0, ends[0], ends[1]))
    share = np.linspace(0, 1, frames)[:, None]
    corners = np.round(ends[0] + share * (ends[1] - ends[0])).astype(int)
    ids_HW = np.zeros(large.shape[:2], np.int64)
    low, high = corners.max(axis=0), corners.min(axis=0) + size  # what every frame shows
    for number in range(1, objects + 1):
        sides = rng.integers(size // 8, size // 3 + 1, 2)
        top, left = (
            int(rng.integers(low[a], max(high[a] - sides[a], low[a] + 1))) for a in range(2)
        )
        ids_HW[top : top + sides[0], left : left + sides[1]] = number
    cut = [(slice(y, y + size), slice(x, x + size)) for y, x in corners]
    return np.stack([large[part] for part in cut]), np.stack([ids_HW[part] for part in cut])


def object_means(guessed_THW, ids_THW, objects: int) -> tuple[float, float]:
    """(J, F) in percent: the mean over objects and over frames but the first and the last."""
    numbers = [number for number in range(1, objects + 1) if np.any(ids_THW == number)]
    pair = (np.stack([ids == n for n in numbers])[:, 1:-1] for ids in (guessed_THW, ids_THW))
    j_OT, f_OT = video_metrics.object_scores(*pair)
    return 100.0 * float(j_OT.mean()), 100.0 * float(f_OT.mean())


def _sheet(frames_THWC, ids_THW, guessed_THW) -> np.ndarray:
    picked = np.unique(np.linspace(0, len(frames_THWC) - 1, 4).astype(int))
    return side_by_side(
        [
            [frames_THWC[t] for t in picked],
            [label_colors(ids_THW[t]) for t in picked],
            [label_colors(guessed_THW[t]) for t in picked],
        ]
    )


def build(section, setting: Setting) -> Pans | None:
    section = values_of(section, KEYS)
    images = open_photographs(section, setting, "pan")
    return None if images is None else Pans(images, section, setting)

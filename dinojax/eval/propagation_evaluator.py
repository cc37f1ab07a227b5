"""Objects followed through videos by similar patches: DAVIS, YouTube-VOS, MOSE, or one's own.

DINOv3, arXiv:2508.10104, D.5: the masks of the first frame are propagated, nothing is trained, and
J and F of the objects in it are averaged over marked frames but the first and the last.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.eval import propagation, video_metrics
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, patch_maps, values_of
from dinojax.eval.videos import Video, open_videos
from dinojax.viz.label_colors import label_colors, side_by_side
from dinojax.weights import pixels

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "data": {
        "default": "",
        "says": 'davis2017:ROOT and so on, or a folder of images/ and maps/; "" = none; [ours]',
    },
    "num": {
        "default": 0,
        "says": "videos, the first of a fixed order; 0 = all; [ours]",
        "limits": (0, None),
    },
    "size": {
        "default": 480,
        "says": "pixels of the short side, both rounded up to patches; [P] 480, 960, 1440",
        "limits": (8, 16_384),
    },
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
    "rule": {
        "default": "paper",
        "says": "of pixels: paper (bilinear) | notebook (nearest, stretched) | dino; [P] [R]",
        "choices": ("paper", "notebook", "dino"),
    },
    "batch_size": {"default": 4, "says": "frames per pass; [ours]", "limits": (1, 1_048_576)},
}
PROTOCOLS = {
    "paper": {"size": 960, "context": 7, "radius": 12.0, "shape": "square", "rule": "paper"},
    "released": {"size": 960, "context": 7, "radius": 12.0, "shape": "circle", "rule": "notebook"},
    "quick": {"size": 240, "num": 4},
}
SEED = 7132  # of the order of videos; part of the number's meaning
PICTURES = 2


@dataclasses.dataclass(frozen=True)
class Propagation:
    """Fields: the frames of all videos, the videos, and the section `propagation`."""

    frames: Source
    videos: tuple[Video, ...]
    section: Any
    transform: Any
    patch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.frames,)

    def measure(self, network: Network) -> Measured:
        """Columns propagation/jf, j and f in percent, over the objects of all videos."""
        scores: list[tuple[float, float]] = []
        pictures: dict[str, np.ndarray] = {}
        short = 0
        for video in self.videos:
            own, sheet = self._followed(network, video, draw=len(pictures) < PICTURES)
            scores += own
            short += not own
            if sheet is not None:
                pictures[video.name] = sheet
        if not scores:
            raise ValueError(
                "propagation.data: no video has an object in its first frame and a marked frame"
                " between it and the last, so that nothing can be judged."
            )
        j_N, f_N = (100.0 * np.array(values) for values in zip(*scores, strict=True))
        told = f"{len(j_N)} objects of {len(self.videos) - short} videos"
        told += f"; {short} videos have nothing to judge" if short else ""
        samples = {"jf": (j_N + f_N) / 2, "j": j_N, "f": f_N}
        return Measured(
            {f"propagation/{name}": float(values.mean()) for name, values in samples.items()},
            num=len(j_N),
            told=told,
            samples={f"propagation/{name}": values for name, values in samples.items()},
            pictures=pictures,
        )

    def _followed(self, network: Network, video: Video, *, draw: bool):
        """([(J, F) of each object of the first frame], picture or None)."""
        first = self.frames[video.frames[0]].pixels
        size = first.shape[:2]
        ids_HW = video.ids(0, size)
        numbers = [int(number) for number in np.unique(ids_HW) if number]
        judged = set(video.marked[1:-1])
        if not numbers or not judged:
            return [], None
        places_HW = np.searchsorted([0, *numbers], ids_HW)
        guesses = follow(
            network,
            self._seen(video, size),
            places_HW,
            section=self.section,
            patch_size=self.patch_size,
            objects=len(numbers),
        )
        j_TO, f_TO, shown = [], [], [(first, ids_HW, places_HW)]
        for frame, guess_HW in enumerate(guesses, start=1):
            if frame not in judged:
                continue
            truth_HW = video.ids(frame, size)
            pairs = [(guess_HW == place, truth_HW == n) for place, n in enumerate(numbers, 1)]
            j_TO.append([video_metrics.region_j(*pair) for pair in pairs])
            f_TO.append([video_metrics.contour_f(*pair) for pair in pairs])
            if draw and len(shown) < 4:
                shown.append((self.frames[video.frames[frame]].pixels, truth_HW, guess_HW))
        scores = list(zip(np.mean(j_TO, axis=0), np.mean(f_TO, axis=0), strict=True))
        return scores, _sheet(shown, numbers) if draw else None

    def _seen(self, video: Video, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Normalised frames, stretched to whole patches."""
        scale = self.section.size / min(size)
        height, width = (_up(round(side * scale, 6), self.patch_size) for side in size)
        for index in video.frames:
            frame = self.frames[index].pixels
            if frame.shape[:2] != size:
                raise ValueError(f"{video.name}: frames are of {size} and {frame.shape[:2]}.")
            large = pixels.resized(frame, "exact", (height, width), "bicubic")
            yield as_seen(self.transform, large)


def follow(
    network: Network,
    frames: Iterable[np.ndarray],
    ids_HW: np.ndarray,
    *,
    section: Any,
    patch_size: int,
    objects: int,
) -> Iterator[np.ndarray]:
    """Ids [H, W] of every frame after the first, whose ids 0..objects are given.

    frames: normalised, of one size. section: context, radius, shape, neighbors, temperature,
    batch_size and perhaps rule.
    """
    settings = propagation.Settings(
        section.context, section.radius, section.shape, section.neighbors, section.temperature
    )
    maps = _maps(network, frames, patch_size=patch_size, batch_size=section.batch_size)
    first = next(maps)
    labels_hw = propagation.first_labels(ids_HW, first.shape[:2])
    one_hot_hwM = np.eye(objects + 1)[labels_hw]
    rule = getattr(section, "rule", "paper")
    for soft_hwM in propagation.propagate(_with(first, maps), one_hot_hwM, settings):
        yield propagation.predicted(soft_hwM, ids_HW.shape, rule=rule)


def _with(first, rest):
    yield first
    yield from rest


def _maps(network, frames, *, patch_size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Patches [h, w, D] of each frame, a batch at a time, so that long videos are never whole."""
    batch: list[np.ndarray] = []
    options = {"patch_size": patch_size, "batch_size": batch_size}
    for frame in frames:
        batch.append(frame)
        if len(batch) == batch_size:
            yield from patch_maps(network, np.stack(batch), **options)
            batch = []
    if batch:
        yield from patch_maps(network, np.stack(batch), **options)


def _up(side: float, multiple: int) -> int:
    return int(-(-side // multiple) * multiple)


def _sheet(shown, numbers) -> np.ndarray:
    """Frames, their true objects and those found, in rows."""
    return side_by_side(
        [
            [frame for frame, _, _ in shown],
            [label_colors(np.searchsorted([0, *numbers], truth)) for _, truth, _ in shown],
            [label_colors(guess) for _, _, guess in shown],
        ]
    )


def build(section, setting: Setting) -> Propagation | None:
    section = values_of(section, KEYS)
    if not section.data:
        return None
    channels = setting.config.image.channels
    frames, videos = open_videos(section.data, channels=channels, key="propagation.data")
    if section.num > len(videos):
        raise ConfigError(f"propagation.num={section.num}, and there are {len(videos)} videos.")
    if section.num:
        order = np.random.default_rng(SEED).permutation(len(videos))[: section.num]
        videos = [videos[number] for number in order]
    return Propagation(frames, tuple(videos), section, setting.transform, setting.patch_size)

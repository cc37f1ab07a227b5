"""Classes of videos by an attentive probe on frozen patches of their frames.

DINOv3, arXiv:2508.10104, D.6: frames at random moments under one crop, self-attention over all
patches of a clip with places in time and space, a query, a linear classifier; a grid of rates and
decays, one chosen by videos held out. The paper states neither the schedule nor heads and MLP of a
block: the rate warms up for a twentieth and falls by a cosine, the rest is V-JEPA 2's.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.config import ConfigError
from dinojax.eval import adamw, attentive_probe, subsets
from dinojax.eval.augmented import crop_box
from dinojax.eval.clips import Clips, File, Frames, open_clips
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, patch_maps, values_of
from dinojax.weights import pixels

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "train": {"default": "", "says": 'list of videos, "PATH CLASS" a line; "" = none; [ours]'},
    "val": {"default": "", "says": "the same, to be judged by; [ours]"},
    "frames": {"default": 16, "says": "of a clip; [P] D.6", "limits": (1, 1024)},
    "size": {"default": 256, "says": "pixels of a frame; [P] D.6", "limits": (8, 4096)},
    "width": {"default": 1024, "says": "of the probe; [P] D.6", "limits": (6, 65_536)},
    "depth": {"default": 5, "says": "blocks, the query's included; [P] 4 + 1", "limits": (1, 64)},
    "heads": {"default": 16, "says": "of attention, as V-JEPA 2; [ours]", "limits": (1, 1024)},
    "rope": {"default": True, "says": "attention turns by time, row and column; [P] D.6"},
    "epochs": {"default": 20.0, "says": "passes over the videos; [P] D.6", "limits": (1e-6, None)},
    "batch_size": {"default": 64, "says": "clips per step; [P] D.6", "limits": (1, 65_536)},
    "rates": {
        "default": (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
        "says": "learning rates, each with every decay; [P] D.6",
        "many": "float",
        "limits": (0, None),
    },
    "decays": {
        "default": (1e-3, 1e-2, 1e-1),
        "says": "weight decays; [P] D.6",
        "many": "float",
        "limits": (0, None),
    },
    "hold_out": {
        "default": 0.1,
        "says": "share of each class that chooses the head; [P] D.6",
        "limits": (1e-6, 0.999999),
    },
    "views": {
        "default": 1,
        "says": "1 (the middle) | 6 (three squares x two sets of frames); [P] D.6",
        "choices": (1, 6),
    },
    "seed": {"default": 0, "says": "of starts, moments and crops; [ours]", "limits": (0, None)},
}
PROTOCOLS = {
    "paper": {"frames": 16, "size": 256, "width": 1024, "epochs": 20.0, "batch_size": 64},
    "quick": {
        "frames": 8,
        "size": 128,
        "width": 192,
        "depth": 2,
        "heads": 4,
        "epochs": 10.0,
        "batch_size": 16,
        "rates": (1e-3, 3e-3),
        "decays": (1e-2,),
    },
}
AREA = (0.4, 1.0)  # of a crop


@dataclasses.dataclass(frozen=True)
class ClipProbe:
    """Fields: videos to learn from and to be judged by, and the section `clips`."""

    train: Clips
    val: Clips
    section: Any
    transform: Any
    patch_size: int

    @property
    def sources(self) -> tuple[Any, ...]:
        return self.train, self.val

    def measure(self, network: Network) -> Measured:
        """Columns clips/accuracy in percent, and clips/top5 from six classes on."""
        own = self.section
        fitted, held = subsets.hold_out(self.train.labels, own.hold_out, own.seed)
        if not len(held):
            raise ValueError("clips.hold_out leaves no video to choose by: classes have one each.")
        grid = list(itertools.product(own.rates, own.decays))
        bank = self._trained(network, self.train.part(fitted), grid)
        chooser = self.train.part(held)
        right_JN = self._probabilities(network, bank, chooser).argmax(axis=-1) == chooser.labels
        best = int(np.argmax(right_JN.mean(axis=1)))
        one = jax.tree.map(lambda x: x[best : best + 1], bank)
        scores_NC = self._probabilities(network, one, self.val)[0]
        rank_N = np.sum(scores_NC > scores_NC[np.arange(len(scores_NC)), self.val.labels, None], 1)
        samples = {"clips/accuracy": 100.0 * (scores_NC.argmax(axis=1) == self.val.labels)}
        if scores_NC.shape[1] > 5:
            samples["clips/top5"] = 100.0 * (rank_N < 5)
        told = f"{len(fitted)} videos to learn from, best of {len(grid)} heads on {len(held)}"
        told += f" ({100 * right_JN[best].mean():.1f} %): rate {grid[best][0]:g}, decay"
        told += f" {grid[best][1]:g}; {len(self.val)} to judge"
        values = {name: float(rows.mean()) for name, rows in samples.items()}
        return Measured(values, num=len(self.val), told=told, samples=samples)

    def _trained(self, network: Network, videos: Clips, grid):
        """Parameters of the heads, a leading axis J."""
        own, size = self.section, min(self.section.batch_size, len(videos))
        num_steps = max(1, math.ceil(own.epochs * len(videos) / size))
        warmup = max(1, num_steps // 20)
        state, order, rng = None, list[int](), np.random.default_rng(own.seed)
        for number in range(num_steps):
            while len(order) < size:
                order += rng.permutation(len(videos)).tolist()
            chosen, order = order[:size], order[size:]
            clips = [self._crop(videos.open(index), rng) for index in chosen]
            tokens, times = self._tokens(network, clips)
            if state is None:
                state = self._start(tokens.shape[-1], len(videos.class_names), len(grid))
            share = max(number + 1 - warmup, 0) / max(num_steps - warmup, 1)
            factor = min((number + 1) / warmup, 0.5 * (1 + math.cos(math.pi * share)))
            rows = [(rate * factor, decay, 0.9) for rate, decay in grid]
            settings = adamw.Settings(
                *(jnp.asarray(v, jnp.float32) for v in zip(*rows, strict=True))
            )
            labels = jnp.asarray(videos.labels[chosen])
            state = _step(state, tokens, times, labels, settings, **self._shape())
        assert state is not None
        return state[0]

    def _start(self, inputs: int, num_classes: int, num_heads: int):
        own = self.section
        key = jax.random.key(own.seed)
        shape = {"width": own.width, "num_classes": num_classes, "depth": own.depth}
        one = attentive_probe.new_probe(key, inputs=inputs, **shape)
        params = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_heads, *x.shape)), one)
        return params, jax.vmap(adamw.start)(params)

    def _shape(self) -> dict[str, Any]:
        side = self.section.size // self.patch_size
        own = self.section
        return {"num_heads": own.heads, "grid": (side, side), "rope": own.rope}

    def _probabilities(self, network: Network, bank, videos: Clips) -> np.ndarray:
        """[J, N, C] of every head, the mean over the views of a video."""
        own, found = self.section, []
        for first in range(0, len(videos), own.batch_size):
            numbers = range(first, min(first + own.batch_size, len(videos)))
            opened = [videos.open(index) for index in numbers]
            views = []
            for view in range(own.views):
                clips = [self._view(video, view) for video in opened]
                clips += clips[:1] * (own.batch_size - len(clips))  # one program
                tokens, times = self._tokens(network, clips)
                views.append(np.asarray(_scores(bank, tokens, times, **self._shape())))
            found.append(np.mean(views, axis=0)[:, : len(opened)])
        return np.concatenate(found, axis=1)

    def _tokens(self, network: Network, clips) -> tuple[jax.Array, jax.Array]:
        """(patches [B, T * h * w, D], times [B, T]) of clips (frames [T, H, W, C], times)."""
        frames = np.concatenate([frames for frames, _ in clips])
        options = {"patch_size": self.patch_size, "batch_size": self.section.frames}
        maps = patch_maps(network, frames, **options)
        tokens = maps.reshape(len(clips), -1, maps.shape[-1])
        times = np.stack([times for _, times in clips]).astype(np.float32)
        return jnp.asarray(tokens), jnp.asarray(times)

    def _crop(self, video: Frames, rng: np.random.Generator):
        """Frames at random moments, in order, all under one random crop."""
        num = len(video.times)
        draws = rng.choice(num, self.section.frames, replace=num < self.section.frames)
        return self._cut(video, np.sort(draws), lambda h, w: crop_box(h, w, rng, area=AREA))

    def _view(self, video: Frames, view: int):
        """Evenly spaced frames under a square: the middle one, or one of three and two sets."""
        num, own = len(video.times), self.section
        if own.views == 1:
            numbers, place = attentive_probe.clip_frames(num, num=own.frames), 0.5
        else:
            every = attentive_probe.clip_frames(num, num=2 * own.frames)
            numbers, place = every[view % 2 :: 2], (view // 2) / 2
        return self._cut(video, np.array(numbers), lambda h, w: _square(h, w, place))

    def _cut(self, video: Frames, numbers: np.ndarray, box):
        if isinstance(video, File):
            video.prepare(numbers)
        own, part, frames = self.section, None, []
        for number in numbers:
            frame = video.read(int(number))
            part = part or box(*frame.shape[:2])
            top, left, rows, columns = part
            cut = frame[top : top + rows, left : left + columns]
            frames.append(pixels.resized(cut, "exact", (own.size, own.size), "bicubic"))
        return np.stack([as_seen(self.transform, frame) for frame in frames]), video.times[numbers]


def _square(height: int, width: int, place: float) -> tuple[int, int, int, int]:
    """The largest square: at the start (0), the middle (0.5) or the end (1) of the longer side."""
    side = min(height, width)
    return round(place * (height - side)), round(place * (width - side)), side, side


@functools.partial(jax.jit, static_argnames=("num_heads", "grid", "rope"), donate_argnums=0)
def _step(state, tokens_BND, times_BT, labels_B, settings, **shape):
    """One head after another, so that the memory is that of one."""

    def update(one):
        params, moments, own = one
        loss = functools.partial(attentive_probe.probe_loss, **_where(params, times_BT, **shape))
        grads = jax.grad(loss)(params, tokens_BND, labels_B)
        return adamw.adamw(params, grads, moments, own)

    return jax.lax.map(update, (*state, settings))


@functools.partial(jax.jit, static_argnames=("num_heads", "grid", "rope"))
def _scores(bank, tokens_BND, times_BT, **shape):
    """Probabilities [J, B, C]."""

    def scores(params):
        options = _where(params, times_BT, **shape)
        return jax.nn.softmax(attentive_probe.class_logits(params, tokens_BND, **options))

    return jax.lax.map(scores, bank)


def _where(params, times_BT, *, num_heads: int, grid: tuple[int, int], rope: bool):
    """Options of the probe: where its tokens are."""
    return {
        "num_heads": num_heads,
        "places_BND": attentive_probe.places(times_BT, grid, params["query"].shape[-1]),
        "coords_BN3": attentive_probe.coordinates(times_BT, grid) if rope else None,
    }


def build(section, setting: Setting) -> ClipProbe | None:
    section = values_of(section, KEYS)
    if not section.train and not section.val:
        return None
    if not (section.train and section.val):
        raise ConfigError("set both clips.train and clips.val to a list of videos.")
    if section.size % setting.patch_size or section.width % section.heads:
        raise ConfigError(
            f"clips.size={section.size} must be a multiple of the patch of {setting.patch_size}"
            f" pixels, and clips.width={section.width} one of clips.heads={section.heads}."
        )
    if section.rope and section.width // section.heads < 6:
        raise ConfigError(
            f"clips.width={section.width} of {section.heads} heads leaves"
            f" {section.width // section.heads} channels a head; clips.rope needs 6 or more."
        )
    if not section.rates or not section.decays:
        raise ConfigError("clips.rates and clips.decays need at least one value each.")
    channels = setting.config.image.channels
    train = open_clips(section.train, channels=channels, key="clips.train")
    classes = train.class_names
    val = open_clips(section.val, channels=channels, key="clips.val", classes=classes)
    return ClipProbe(train, val, section, setting.transform, setting.patch_size)

"""Depth by linear heads over bins, trained as the papers do. DINOv3, arXiv:2508.10104, D.2."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.config import ConfigError
from dinojax.data.decode import DecodeError
from dinojax.data.example import Source
from dinojax.eval import depth_losses, depth_metrics, sliding
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.dense_pixels import nearest, resized, short_side
from dinojax.eval.dense_schedules import OneCycle
from dinojax.eval.depth_bins import depth_of
from dinojax.eval.depth_transforms import DepthTrainTransform, frame
from dinojax.eval.linear_head import Bank, evaluated, update
from dinojax.eval.map_folder import MapFolder
from dinojax.eval.map_probe import open_pair, trained
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, normalizer, patch_maps, values_of
from dinojax.eval.ridge_evaluator import PICTURES
from dinojax.ops.interpolate import resize
from dinojax.viz.label_colors import side_by_side, value_colors

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "train": {"default": "", "says": 'folder of images/ and maps/; "" = knn.bank; [ours]'},
    "val": {"default": "", "says": 'the same, to be judged by; "" = knn.query; [ours]'},
    "per_metre": {
        "default": 1000.0,
        "says": "what maps of whole numbers hold for a metre (NYU 1000, KITTI 256); [R]",
        "limits": (1e-6, None),
    },
    "min_depth": {"default": 0.001, "says": "metres, excluded; [R]", "limits": (1e-6, None)},
    "max_depth": {
        "default": 10.0,
        "says": "metres, excluded (NYU 10, KITTI 80); [R]",
        "limits": (1e-3, None),
    },
    "num_bins": {"default": 256, "says": "outputs of a head; [R]", "limits": (2, 65_536)},
    "mask": {
        "default": "none",
        "says": "part of the frame that is judged: none (all) | eigen (NYU) | garg, eigen_kitti;"
        " [R] eigen",
        "choices": ("none", "eigen", "garg", "eigen_kitti"),
    },
    "frame": {
        "default": "whole",
        "says": "part of an image that is used: whole | nyu (learnt from without the border; [R]) |"
        " kitti (352 x 1216)",
        "choices": ("whole", "nyu", "kitti"),
    },
    "size": {
        "default": 512,
        "says": "pixels of crops and of the short side; [P] D.2",
        "limits": (8, 16_384),
    },
    "num_steps": {"default": 38_400, "says": "of training the heads; [R]", "limits": (1, None)},
    "warmup": {"default": 12_800, "says": "steps; [R]", "limits": (0, None)},
    "batch_size": {"default": 16, "says": "crops per step; [R]", "limits": (1, 1_048_576)},
    "rates": {
        "default": (1e-4, 3e-4, 1e-3),
        "says": "learning rates, each with every decay; [P] D.1",
        "many": "float",
        "limits": (0, None),
    },
    "decays": {
        "default": (1e-4, 1e-3),
        "says": "weight decays; [P] D.1",
        "many": "float",
        "limits": (0, None),
    },
    "clip": {
        "default": 35.0,
        "says": "largest norm of a head's gradient; [R]",
        "limits": (1e-6, None),
    },
}
PROTOCOLS = {
    "paper": {"size": 512, "num_steps": 38_400, "warmup": 12_800, "batch_size": 16},
    "released": {
        "num_steps": 38_400,
        "warmup": 12_800,
        "batch_size": 16,
        "rates": (3e-4,),
        "decays": (1e-4,),
    },
    "quick": {"num_steps": 300, "warmup": 60, "batch_size": 8, "rates": (1e-3, 1e-2)},
}
SEED = 7122  # of the crops and of the heads' first weights
MASKS = {
    "none": lambda height, width: np.ones((height, width), bool),
    "eigen": depth_metrics.eigen_mask,
    "garg": depth_metrics.garg_mask,
    "eigen_kitti": depth_metrics.eigen_kitti_mask,
}
_WARM_LOSS = 100  # first steps, whose loss has no variance


@dataclasses.dataclass(frozen=True)
class LinearDepth:
    """Heads trained on the images of `train`, the best of which is told."""

    train: MapFolder
    val: MapFolder
    section: Any
    transform: Any
    patch_size: int

    @property
    def sources(self) -> tuple[Source, Source]:
        return self.train.images, self.val.images

    def depth(self, stored_HW: np.ndarray) -> np.ndarray:
        """Metres of a map: whole numbers are divided, floats are metres already."""
        scale = self.section.per_metre if np.issubdtype(stored_HW.dtype, np.integer) else 1.0
        return stored_HW.astype(np.float32) / np.float32(scale)

    def measure(self, network: Network) -> Measured:
        """Columns depth/rmse (m), abs_rel, a1 (share) and others, of the head of least rmse."""
        sweep = list(itertools.product(self.section.rates, self.section.decays))
        bank = self._trained(network, sweep)
        images, shown = [], []
        for index in range(len(self.val)):
            pixels, truth = self.read(self.val, index)
            guesses = self._guesses(network, bank, pixels, truth.shape)
            images.append([self._judged(guess, truth) for guess in guesses])
            if index < PICTURES:
                shown.append((pixels, truth, guesses))
        means = [depth_metrics.mean_over_images(per_head) for per_head in zip(*images, strict=True)]
        best = int(np.nanargmin([mean["rmse"] for mean in means]))
        told = f"{len(self.train)} images learnt from, {len(self.val)} judged; best of {len(sweep)}"
        told += f" heads: rate {sweep[best][0]:g}, decay {sweep[best][1]:g}"
        rmse_N = np.array([per_image[best]["rmse"] for per_image in images])
        return Measured(
            {f"depth/{name}": value for name, value in means[best].items()},
            num=len(images),
            told=told,
            samples={"depth/rmse": rmse_N[~np.isnan(rmse_N)]},
            pictures={"depth": self._picture(shown, best)},
        )

    def _judged(self, guess_HW: np.ndarray, truth_HW: np.ndarray) -> dict[str, float]:
        own = self.section
        valid = depth_metrics.valid_depth(truth_HW, own.min_depth, own.max_depth)
        valid &= MASKS[own.mask](*truth_HW.shape)
        guess_HW = np.clip(guess_HW, own.min_depth, own.max_depth)
        return depth_metrics.depth_metrics(guess_HW, truth_HW, valid)

    def _guesses(self, network: Network, bank: Bank, pixels, size) -> np.ndarray:
        """Depth [J, *size] of each head, the mean of the image's and of its mirror's."""
        height, width, _ = pixels.shape
        small = short_side(height, width, self.section.size)
        stride = max(2 * self.section.size // 3, 1)
        places = sliding.windows(*small, crop=self.section.size, stride=stride)
        views = []
        for view in (pixels, pixels[:, ::-1]):
            parts = sliding.cut(resized(view, small), places)
            seen = np.stack([as_seen(self.transform, part) for part in parts])
            patches = patch_maps(
                network, seen, patch_size=self.patch_size, batch_size=self.section.batch_size
            )
            depth_JNHW = np.asarray(
                _depth(bank, jnp.asarray(patches), **self._options(), size=self.section.size)
            )
            whole = [sliding.stitched(d[..., None], places, small) for d in depth_JNHW]
            at_size = resize(jnp.asarray(np.stack(whole)), size, method="bilinear", antialias=False)
            views.append(np.asarray(at_size)[..., 0])
        return (views[0] + views[1][:, :, ::-1]) / 2

    def _options(self) -> dict[str, float]:
        return {"min_depth": self.section.min_depth, "max_depth": self.section.max_depth}

    def _trained(self, network: Network, sweep: list[tuple[float, float]]) -> Bank:
        own = self.section
        cut = DepthTrainTransform((own.size, own.size), normalizer(self.transform))
        warmup = min(own.warmup, own.num_steps - 1)
        cycles = [OneCycle(rate, own.num_steps, warmup) for rate, _ in sweep]

        def step(bank, patches, truth, settings, number):
            with_variance = jnp.asarray(number >= _WARM_LOSS)
            options = {"clip": own.clip, **self._options()}
            return _step(bank, patches, truth, settings, with_variance, **options)

        return trained(
            network,
            len(self.train),
            lambda index, rng: cut(*self._at_size(index), rng),
            step,
            section=own,
            patch_size=self.patch_size,
            outputs=own.num_bins,
            hyper=lambda number: [
                (cycle.rate(number), decay, cycle.momentum(number))
                for cycle, (_, decay) in zip(cycles, sweep, strict=True)
            ],
            seed=SEED,
        )

    def _at_size(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels, truth = self.read(self.train, index)
        height, width = truth.shape
        size = short_side(height, width, self.section.size)
        return resized(pixels, size), nearest(truth, size)

    def read(self, folder: MapFolder, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(pixels uint8 [H, W, C], metres [H, W]) of the frame."""
        pixels, stored = folder.read(index)
        try:
            part = frame(self.section.frame, *stored.shape, learn=folder is self.train)
        except ValueError as error:
            raise DecodeError(
                f"{folder.maps[index]}: {error}, which depth.frame={self.section.frame} asks for."
            ) from error
        return pixels[part], self.depth(stored[part])

    def _picture(self, shown, head: int) -> np.ndarray:
        rows = []
        for pixels, truth, guesses in shown:
            known = truth[
                depth_metrics.valid_depth(truth, self.section.min_depth, self.section.max_depth)
            ]
            low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
            true = value_colors(np.where(truth > 0, truth, np.nan), low, high)
            rows.append((pixels, true, value_colors(guesses[head], low, high)))
        return side_by_side(rows)


@functools.partial(jax.jit, static_argnames=("size", "min_depth", "max_depth"))
def _depth(bank, patches_BhwD, *, size: int, min_depth: float, max_depth: float):
    """Depth [J, B, size, size] of every head."""

    def at_size(logits_BhwK):
        depth_Bhw = depth_of(
            logits_BhwK, kind="linear", norm="linear", min_depth=min_depth, max_depth=max_depth
        )
        large = resize(depth_Bhw[..., None], (size, size), method="bilinear", antialias=False)
        return large[..., 0]

    return jax.vmap(at_size)(evaluated(bank, patches_BhwD))


@functools.partial(jax.jit, static_argnames=("clip", "min_depth", "max_depth"), donate_argnums=0)
def _step(bank, patches_BhwD, truth_BHW, settings, with_variance, *, clip, min_depth, max_depth):
    valid_BHW = (truth_BHW > min_depth) & (truth_BHW < max_depth)

    def loss_of(logits_BhwK):
        depth_Bhw = depth_of(
            logits_BhwK, kind="linear", norm="linear", min_depth=min_depth, max_depth=max_depth
        )
        size = truth_BHW.shape[1:]
        depth_BHW = resize(depth_Bhw[..., None], size, method="bilinear", antialias=False)[..., 0]
        return depth_losses.sig_loss(depth_BHW, truth_BHW, valid_BHW, with_variance=with_variance)

    return update(bank, patches_BhwD, loss_of, settings, beta2=0.99, max_norm=clip)[0]


def build(section, setting: Setting) -> LinearDepth | None:
    section = values_of(section, KEYS)
    found = open_pair(section, setting, "depth", kind="depth")
    if found is None:
        return None
    train, val, section = found
    if section.min_depth >= section.max_depth:
        raise ConfigError(
            f"depth.min_depth={section.min_depth} is not below max_depth={section.max_depth}."
        )
    if not section.rates or not section.decays:
        raise ConfigError("depth.rates and depth.decays need at least one value each.")
    return LinearDepth(train, val, section, setting.transform, setting.patch_size)

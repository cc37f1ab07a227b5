"""Segmentation by linear heads, trained as the papers do: a sweep at once, over sliding windows.

DINOv3, arXiv:2508.10104, D.1: frozen patches after the last norm, batch norm, one linear map,
AdamW; the best of the sweep on the images to be judged by counts, as in the paper.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.eval import segmentation_losses
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.dense_schedules import OneCycle
from dinojax.eval.linear_head import Bank, drop_channels, evaluated, update
from dinojax.eval.map_folder import MapFolder
from dinojax.eval.map_probe import open_pair, trained
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import normalizer, values_of
from dinojax.eval.ridge_evaluator import Judged, largest_label
from dinojax.eval.segmentation_transforms import TrainTransform
from dinojax.ops.interpolate import resize

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "train": {"default": "", "says": 'folder of images/ and maps/; "" = knn.bank; [ours]'},
    "val": {"default": "", "says": 'the same, to be judged by; "" = knn.query; [ours]'},
    "num_classes": {"default": 0, "says": "0 = largest label + 1; [ours]", "limits": (0, 65_000)},
    "zero_is_unlabelled": {"default": False, "says": "label 0 is ignored (ADE20k); [R]"},
    "size": {
        "default": 512,
        "says": "pixels of crops and of the short side; [R]",
        "limits": (8, 16_384),
    },
    "num_steps": {"default": 40_000, "says": "of training the heads; [R]", "limits": (1, None)},
    "warmup": {"default": 1500, "says": "steps; [R]", "limits": (0, None)},
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
    "dropout": {"default": 0.1, "says": "rate of dropped channels; [R]", "limits": (0, 0.99)},
}
PROTOCOLS = {
    "paper": {"size": 512, "num_steps": 40_000, "warmup": 1500, "batch_size": 16},
    "released": {
        "size": 512,
        "num_steps": 40_000,
        "warmup": 1500,
        "batch_size": 16,
        "rates": (1e-3,),
        "decays": (1e-3,),
    },
    "quick": {"num_steps": 300, "warmup": 30, "batch_size": 8, "rates": (1e-3, 1e-2)},
}
SEED = 7121  # of the crops and of the heads' first weights


@dataclasses.dataclass(frozen=True)
class LinearSegmentation:
    """Heads trained on the images of `train`, the best of which is told."""

    train: MapFolder
    val: MapFolder
    section: Any
    transform: Any
    patch_size: int
    num_classes: int

    @property
    def sources(self) -> tuple[Source, Source]:
        return self.train.images, self.val.images

    def measure(self, network: Network) -> Measured:
        """Columns segmentation/miou and accuracy, of the head whose miou is the largest."""
        sweep = list(itertools.product(self.section.rates, self.section.decays))
        bank = self._trained(network, sweep)
        apply = jax.jit(evaluated)
        judge = Judged(
            self.val,
            self.transform,
            patch_size=self.patch_size,
            size=self.section.size,
            batch_size=self.section.batch_size,
            num_classes=self.num_classes,
            zero_is_unlabelled=self.section.zero_is_unlabelled,
        )
        results = judge.results(network, lambda patches: np.asarray(apply(bank, patches)))
        best = int(np.argmax([judge.metrics(counts)["miou"] for counts in results.counts]))
        rate, decay = sweep[best]
        told = f"{len(self.train)} images learnt from, {len(self.val)} judged; "
        told += f"best of {len(sweep)} heads: rate {rate:g}, decay {decay:g}"
        return judge.measured("segmentation", results, best, told)

    def _trained(self, network: Network, sweep: list[tuple[float, float]]) -> Bank:
        own, key = self.section, jax.random.key(SEED)
        cut = TrainTransform(
            own.size,
            own.size,
            normalizer(self.transform),
            zero_is_unlabelled=own.zero_is_unlabelled,
        )
        cycles = [
            OneCycle(rate, own.num_steps, min(own.warmup, own.num_steps - 1), 1e-6,
                     float("inf"), beta1=0.9)
            for rate, _ in sweep
        ]  # fmt: skip

        def view(index: int, rng: np.random.Generator):
            pixels, labels_HW = cut(*self.train.read(index), rng)
            self.train.check_labels(index, labels_HW, self.num_classes)
            return pixels, labels_HW.astype(np.int32)

        def step(bank, patches, labels, settings, number):
            drawn = jax.random.fold_in(key, number)
            return _step(bank, patches, labels, settings, drawn, dropout=own.dropout)[0]

        return trained(
            network,
            len(self.train),
            view,
            step,
            section=own,
            patch_size=self.patch_size,
            outputs=self.num_classes,
            hyper=lambda number: [
                (cycle.rate(number), decay, 0.9)
                for cycle, (_, decay) in zip(cycles, sweep, strict=True)
            ],
            seed=SEED,
        )


@functools.partial(jax.jit, static_argnames="dropout", donate_argnums=0)
def _step(bank, patches_BhwD, labels_BHW, settings, key, *, dropout: float):
    patches_BhwD = drop_channels(key, patches_BhwD, dropout) if dropout else patches_BhwD

    def loss_of(logits_BhwC):
        size = labels_BHW.shape[1:]
        logits_BHWC = resize(logits_BhwC, size, method="bilinear", antialias=False)
        return segmentation_losses.cross_entropy(logits_BHWC, labels_BHW)

    return update(bank, patches_BhwD, loss_of, settings)


def build(section, setting: Setting) -> LinearSegmentation | None:
    section = values_of(section, KEYS)
    found = open_pair(section, setting, "segmentation")
    if found is None:
        return None
    train, val, section = found
    if not section.rates or not section.decays:
        raise ConfigError(
            "segmentation.rates and segmentation.decays need at least one value each."
        )
    num_classes = section.num_classes or largest_label(train, section.zero_is_unlabelled) + 1
    return LinearSegmentation(
        train, val, section, setting.transform, setting.patch_size, num_classes
    )

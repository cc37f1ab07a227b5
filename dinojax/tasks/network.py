"""A frozen backbone under a head: from normalised images to a map of every pixel."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dinojax.config import ConfigError
from dinojax.eval.depth_bins import depth_of
from dinojax.models.vit import VitSpec
from dinojax.ops.interpolate import resize
from dinojax.tasks.adapter import AdapterSpec
from dinojax.tasks.dpt import Dpt, DptSpec
from dinojax.tasks.linear import LinearHead
from dinojax.tasks.mask2former import MaskSpec, Segmenter, semantic
from dinojax.tasks.pixel_decoder import PixelSpec
from dinojax.tasks.settings import Settings
from dinojax.weights.load import Backbone

_HEADS = 8  # of the attention of a mask2former head
Levels = list[tuple[jax.Array, jax.Array]]  # (patches [B, h, w, D], cls [B, D]) of blocks


def four_blocks(depth: int) -> tuple[int, ...]:
    """Numbers of four blocks at equal distances, the last one last; DINOv3's own of 24 blocks."""
    if depth == 24:
        return (4, 11, 17, 23)
    if depth < 4:
        raise ConfigError(f"a backbone of {depth} blocks has no four for a dpt head; use linear.")
    return tuple(depth * number // 4 - 1 for number in (1, 2, 3, 4))


@dataclasses.dataclass(frozen=True)
class TaskNetwork:
    """A task's head, static, and the backbone that it looks at."""

    task: str
    settings: Settings
    backbone: Backbone
    outputs: int  # classes, or bins

    @property
    def module(self) -> Dpt | LinearHead | Segmenter:
        own = self.settings
        if own.head == "linear":
            return LinearHead(self.outputs)
        if own.head == "mask2former":
            sizes = {"width": own.width, "ffn": 4 * own.width, "heads": _HEADS}
            pixel = PixelSpec(**sizes, depth=own.pixel_depth)
            masks = {"queries": own.queries, "depth": own.depth, "heads": _HEADS}
            adapter = AdapterSpec(self.backbone.spec.width, drop_path=0.3)
            return Segmenter(adapter, MaskSpec(self.outputs, pixel, ffn=4 * own.width, **masks))
        spec = DptSpec(own.levels, own.width, outputs=self.outputs, readout=own.readout)
        return Dpt(dataclasses.replace(spec, dropout=0.05))

    def features(self, images_BHWC: np.ndarray) -> Levels:
        """Of the blocks that the head looks at, after the final norm; without a gradient."""
        spec = self.backbone.spec
        assert isinstance(spec, VitSpec)
        layers = 1 if self.settings.head == "linear" else four_blocks(spec.depth)
        size = spec.patch_size
        grid = images_BHWC.shape[1] // size, images_BHWC.shape[2] // size
        found = self.backbone.intermediate(images_BHWC, layers)
        return [(f.patches.reshape(-1, *grid, spec.width), f.cls) for f in found]

    def new(self, key: jax.Array) -> dict[str, Any]:
        """Random variables of the head."""
        width = self.backbone.spec.width
        level = jnp.zeros((1, 2, 2, width)), jnp.zeros((1, width))
        images = jnp.zeros((1, 32, 32, self.backbone.spec.channels))
        inputs = self.spec.inputs(images, [level] * 4)
        keys = {"params": key, "dropout": key}
        variables = self.module.init(keys, *inputs, train=True)
        return jax.tree.map(jnp.asarray, nn.meta.unbox(variables))

    def predict(self, variables: dict[str, Any], images_BHWC: np.ndarray) -> jax.Array:
        """Metres [B, H, W], or scores of classes [B, H, W, K], of images of one size."""
        size, levels = images_BHWC.shape[1:3], self.features(images_BHWC)
        spec = self.spec
        return _predict(spec, size, variables, spec.needed(images_BHWC), levels)

    @property
    def spec(self) -> "HeadSpec":
        own = self.settings
        depth = (own.min_depth, own.max_depth) if self.task != "segment" else None
        return HeadSpec(self.module, depth, self.task == "canopy", own.num_points)


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """What a compiled program depends on."""

    module: Dpt | LinearHead | Segmenter
    depth: tuple[float, float] | None  # least and greatest metres; None = classes
    is_canopy: bool
    num_points: int  # of masks

    @property
    def is_masks(self) -> bool:
        return isinstance(self.module, Segmenter)

    def needed(self, images_BHWC):
        """What of the images the head itself looks at: None for most."""
        return images_BHWC if self.is_masks else None

    def inputs(self, images_BHWC, levels: Levels) -> tuple:
        """What the module is called with."""
        if self.is_masks:
            return images_BHWC, [x.reshape(len(x), -1, x.shape[-1]) for x, _ in levels]
        return (levels,)

    def at_size(self, outputs, size: tuple[int, int]) -> jax.Array:
        """Metres [B, H, W], or scores of classes [B, H, W, K]."""
        if self.is_masks:
            return semantic(outputs[-1], size)
        logits_BhwK = outputs
        if self.depth is None:
            return resize(logits_BhwK, size, method="bilinear", antialias=False)
        low, high = self.depth
        bins = "mixlog" if self.is_canopy else "linear"
        depth_Bhw = depth_of(logits_BhwK, kind=bins, norm=bins, min_depth=low, max_depth=high)
        return resize(depth_Bhw[..., None], size, method="bilinear", antialias=False)[..., 0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(spec: HeadSpec, size: tuple[int, int], variables, images, levels) -> jax.Array:
    inputs = spec.inputs(images, levels)
    return spec.at_size(spec.module.apply(variables, *inputs, train=False), size)


def check_backbone(backbone: Backbone, path: str) -> None:
    """Raise ConfigError for a backbone that these heads do not look at."""
    if not isinstance(backbone.spec, VitSpec):
        kind = type(backbone.spec).__name__.removesuffix("Spec")
        raise ConfigError(
            f"--backbone {path} is a {kind}; heads are trained on vision transformers so far."
        )

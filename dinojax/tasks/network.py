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
from dinojax.tasks.detr import Detector, DetrSpec
from dinojax.tasks.dpt import Dpt, DptSpec
from dinojax.tasks.linear import LinearHead
from dinojax.tasks.mask2former import MaskSpec, Segmenter, semantic
from dinojax.tasks.pixel_decoder import PixelSpec
from dinojax.tasks.settings import Settings
from dinojax.tasks.windows import windowed
from dinojax.weights.load import Backbone

GRID = 16  # pixels to which the four maps of a ConvNeXt are resized, as the released code does
VIT_ALONE = ("mask2former", "detr")  # heads that do not look at a ConvNeXt
_HEADS = 8  # of the attention of a mask2former or detr head
Levels = list[tuple[jax.Array, jax.Array]]  # (patches [B, h, w, D], cls [B, D]) of blocks


def four_blocks(depth: int) -> tuple[int, ...]:
    """Numbers of four blocks at equal distances, the last one last; DINOv3's own of 24 blocks."""
    if depth == 24:
        return (4, 11, 17, 23)
    if depth < 4:
        raise ConfigError(f"a backbone of {depth} blocks has no four, which this head looks at.")
    return tuple(depth * number // 4 - 1 for number in (1, 2, 3, 4))


@dataclasses.dataclass(frozen=True)
class TaskNetwork:
    """A task's head, static, and the backbone that it looks at."""

    task: str
    settings: Settings
    backbone: Backbone
    outputs: int  # classes, or bins

    @property
    def module(self) -> Dpt | LinearHead | Segmenter | Detector:
        own = self.settings
        if own.head == "detr":
            return Detector(self._detr())
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

    def _detr(self) -> DetrSpec:
        own = self.settings
        layers = {"encoder_depth": own.encoder_depth, "depth": own.depth}
        groups = {"one_to_one": own.queries, "one_to_many": own.many_queries}
        return DetrSpec(
            self.outputs,
            own.width,
            _HEADS,
            encoder_ffn=own.ffn,
            ffn=own.ffn,
            **layers,
            **groups,
            patch_size=self.backbone.spec.patch_size,
            smallest=own.smallest,
        )

    def features(self, images_BHWC: np.ndarray) -> Levels | jax.Array:
        """Of the blocks that the head looks at, after the final norm; without a gradient.

        Of a detector one map [B, h, w, C] of all blocks, in windows and whole.
        """
        if self.settings.head != "detr":
            return self._levels(images_BHWC)
        if not (windows := self.settings.windows):
            return self._joined(images_BHWC)
        size = self.backbone.spec.patch_size
        images = jnp.asarray(images_BHWC)
        return windowed(self._joined, images, windows=windows, patch_size=size)

    def _joined(self, images_BHWC) -> jax.Array:
        return jnp.concatenate([x for x, _ in self._levels(images_BHWC)], axis=-1)

    def _levels(self, images_BHWC) -> Levels:
        spec = self.backbone.spec
        is_vit = isinstance(spec, VitSpec)
        layers = 1 if self.settings.head == "linear" else four_blocks(spec.depth)
        size = spec.patch_size if is_vit else GRID
        grid = images_BHWC.shape[1] // size, images_BHWC.shape[2] // size
        found = self.backbone.intermediate(images_BHWC, layers, patch_size=None if is_vit else size)
        return [(f.patches.reshape(-1, *grid, f.patches.shape[-1]), f.cls) for f in found]

    @property
    def _widths(self) -> tuple[int, ...]:
        """Channels of the maps that the head looks at."""
        spec = self.backbone.spec
        widths = (spec.width,) * 4 if isinstance(spec, VitSpec) else spec.widths
        return widths[-1:] if self.settings.head == "linear" else widths

    def new(self, key: jax.Array) -> dict[str, Any]:
        """Random variables of the head."""
        spec, own = self.backbone.spec, self.settings
        needed = jnp.zeros((1, 32, 32, spec.channels))
        features: Levels | jax.Array = [
            (jnp.zeros((1, 2, 2, width)), jnp.zeros((1, width))) for width in self._widths
        ]
        if own.head == "detr":
            grid, maps = own.size // spec.patch_size, 8 if own.windows else 4
            features = jnp.zeros((1, grid, grid, maps * spec.width))
            needed = jnp.full((1, 2), own.size)
        inputs = self.spec.inputs(needed, features)
        init = functools.partial(self.module.init, train=True)  # compiled: outputs are left out
        variables = jax.jit(init)({"params": key, "dropout": key}, *inputs)
        return {"batch_stats": {}, **nn.meta.unbox(variables)}

    def predict(self, variables: dict[str, Any], images_BHWC: np.ndarray) -> jax.Array:
        """Metres [B, H, W], or scores of classes [B, H, W, K], of images of one size."""
        size, levels = images_BHWC.shape[1:3], self.features(images_BHWC)
        return _predict(self.spec, size, variables, self.spec.needed(images_BHWC), levels)

    @property
    def spec(self) -> "HeadSpec":
        own = self.settings
        depth = (own.min_depth, own.max_depth) if self.task in ("depth", "canopy") else None
        patch_size = self.backbone.spec.patch_size
        return HeadSpec(
            self.module, depth, self.task == "canopy", own.num_points, own.copies, patch_size
        )


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """What a compiled program depends on."""

    module: Dpt | LinearHead | Segmenter | Detector
    depth: tuple[float, float] | None  # least and greatest metres; None = classes
    is_canopy: bool
    num_points: int  # of masks
    copies: int  # of an object, for the queries of which many answer for one
    patch_size: int

    @property
    def is_masks(self) -> bool:
        return isinstance(self.module, Segmenter)

    @property
    def is_boxes(self) -> bool:
        return isinstance(self.module, Detector)

    def needed(self, images_BHWC, sizes_B2=None):
        """What the head asks for besides features: images (masks), their sizes (boxes) or None.

        sizes: (height, width) in their arrays, None where they fill these.
        """
        if self.is_boxes:
            return sizes_B2
        return images_BHWC if self.is_masks else None

    def inputs(self, needed, features) -> tuple:
        """What the module is called with."""
        if self.is_boxes:
            return features, self._hidden(needed, features.shape[1:3])
        if self.is_masks:
            return needed, [x.reshape(len(x), -1, x.shape[-1]) for x, _ in features]
        return (features,)

    def _hidden(self, sizes_B2, grid: tuple[int, int]) -> jax.Array:
        """True [B, h, w] beyond the images, whose sides are whole patches."""
        ends_B211 = (sizes_B2 // self.patch_size)[:, :, None, None]
        rows, columns = np.arange(grid[0])[None, :, None], np.arange(grid[1])[None, None]
        return (rows >= ends_B211[:, 0]) | (columns >= ends_B211[:, 1])

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


def check_backbone(backbone: Backbone, path: str, head: str) -> None:
    """Raise ConfigError for a backbone that this head does not look at."""
    if isinstance(backbone.spec, VitSpec) or head not in VIT_ALONE:
        return
    found = f"--backbone {path} is a ConvNeXt, and head={head} looks at vision transformers alone"
    if head == "detr":
        raise ConfigError(f"{found}, as detect does; give one of these as --backbone.")
    raise ConfigError(f"{found}; use head=dpt or head=linear, or give one as --backbone.")

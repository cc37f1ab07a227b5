"""Trainable blocks on a frozen backbone's tokens: the image side of dino.txt.

Jose et al., "DINOv2 Meets Text", arXiv:2412.16334; DINOv3, arXiv:2508.10104, section on text.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.block import VitSpec, init_blocks, run_blocks
from dinojax.models.layers import Linear, Norm, normal, wide

POOLS = ("mean", "max")
NORM = "layernorm_1e5"


@dataclasses.dataclass(frozen=True)
class VisionHeadSpec:
    """Static choices. outputs: channels of cls and of patches, None = `width`, no projection."""

    width: int  # of the backbone's tokens
    depth: int
    num_heads: int
    outputs: int | None = None
    drop_path: float = 0.0
    pool: str = "mean"  # of POOLS, over the patches
    attention: str = "plain"
    remat: str = "none"
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    reduce: jnp.dtype = jnp.dtype(jnp.float32)

    @property
    def block(self) -> VitSpec:
        """Its blocks: gated, with LayerScale, without positions or bias of qkv."""
        return VitSpec(
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            ffn="swiglu64",
            ffn_ratio=4.0,
            qkv_bias=False,
            norm=NORM,
            layer_scale=1e-5,
            drop_path=self.drop_path,
            attention=self.attention,
            remat=self.remat,
            dtype=self.dtype,
            reduce=self.reduce,
        )

    @property
    def features(self) -> int:
        """Channels of the embedding of an image: cls and pooled patches."""
        return 2 * (self.outputs or self.width)


class ImageFeatures(NamedTuple):
    """What the image side makes of B images; nothing has unit length yet."""

    pooled: jax.Array  # [B, 2 E], cls and pooled patches, float32 at least
    cls: jax.Array  # [B, E]
    patches: jax.Array  # [B, P, E], row-major


class VisionHead(nn.Module):
    """Blocks over [cls, registers, patches], a norm and, if asked for, a projection."""

    spec: VisionHeadSpec

    def setup(self):
        spec = self.spec
        self.blocks = self.param("blocks", functools.partial(init_blocks, spec.block))
        self.norm = Norm(NORM, spec.dtype)
        if spec.outputs is not None:
            self.proj = Linear(
                (spec.width, spec.outputs),
                ("width", None),
                spec.dtype,
                bias=False,
                init=normal(spec.width**-0.5),
                reduce=spec.reduce,
            )

    def __call__(self, prefix_BRD, patches_BPD, subsets=None) -> ImageFeatures:
        """prefix_BRD: cls, then registers. subsets: of `vit.make_draws`, None = no drop path."""
        x_BND = jnp.concatenate([prefix_BRD, patches_BPD], axis=1).astype(self.spec.dtype)
        x_BND = self.norm(run_blocks(self.spec.block, self.blocks, x_BND, subsets))
        if self.spec.outputs is not None:
            x_BND = self.proj(x_BND)
        cls_BE, patches_BPE = x_BND[:, 0], x_BND[:, prefix_BRD.shape[1] :]
        pool = jnp.max if self.spec.pool == "max" else jnp.mean
        pooled = jnp.concatenate([wide(cls_BE), pool(wide(patches_BPE), axis=1)], axis=-1)
        return ImageFeatures(pooled, cls_BE, patches_BPE)

"""Mask2Former: queries that each claim a class and the pixels it is at.

Cheng et al., arXiv:2112.01527; on a frozen backbone in DINOv3, arXiv:2508.10104, D.10.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.layers import wide
from dinojax.ops.interpolate import resize
from dinojax.tasks import sines
from dinojax.tasks.adapter import Adapter, AdapterSpec
from dinojax.tasks.layers import (
    Attention,
    LayerNorm,
    Linear,
    Mlp,
    feed_forward,
    parameter,
    size_of,
)
from dinojax.tasks.pixel_decoder import LEVELS, PixelDecoder, PixelSpec


class Prediction(NamedTuple):
    """Of every query: classes, the last of which is no object, and its mask, as logits."""

    classes_BQK: jax.Array
    masks_BQhw: jax.Array  # at 1/4 of the image


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Static choices; as in the released segmentation head."""

    classes: int
    pixel: PixelSpec = PixelSpec()
    queries: int = 100
    heads: int = 16
    ffn: int = 4096
    depth: int = 9

    @property
    def width(self) -> int:
        return self.pixel.width


class CrossAttention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x, query_embed, source, positions, blocked) -> jax.Array:
        attention = Attention(self.heads, name="multihead_attn")
        y = attention(x + query_embed, source + positions, source, blocked)
        return LayerNorm(name="norm")(x + y)


class SelfAttention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x, query_embed) -> jax.Array:
        query = x + query_embed
        y = Attention(self.heads, name="self_attn")(query, query, x)
        return LayerNorm(name="norm")(x + y)


class Ffn(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x) -> jax.Array:
        return LayerNorm(name="norm")(x + feed_forward(x, self.hidden))


class Embedding(nn.Module):
    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> jax.Array:
        return wide(parameter(self, "embedding", nn.initializers.normal(1.0), self.shape))


class Predictor(nn.Module):
    """Queries look at the maps, each within the mask that it had before; depth + 1 predictions."""

    spec: MaskSpec

    def setup(self):
        spec = self.spec
        shape = (spec.queries, spec.width)
        self.query_feat, self.query_embed = Embedding(shape), Embedding(shape)
        self.level_embed = Embedding((LEVELS, spec.width))
        self.transformer_cross_attention_layers = [
            CrossAttention(spec.heads) for _ in range(spec.depth)
        ]
        self.transformer_self_attention_layers = [
            SelfAttention(spec.heads) for _ in range(spec.depth)
        ]
        self.transformer_ffn_layers = [Ffn(spec.ffn) for _ in range(spec.depth)]
        self.post_norm, self.class_embed = LayerNorm(), Linear(spec.classes + 1)
        self.mask_embed = Mlp((spec.width,) * 3)

    def __call__(self, pixels_BhwD, maps: Sequence[jax.Array]) -> list[Prediction]:
        width, dtype = self.spec.width, pixels_BhwD.dtype
        embed = self.level_embed().astype(dtype)
        sources = [x.reshape(len(x), -1, width) + embed[n][None, None] for n, x in enumerate(maps)]
        positions = [sines.of_map(size_of(x), width, dtype).reshape(1, -1, width) for x in maps]
        query_embed = self.query_embed().astype(dtype)[None]
        x = jnp.repeat(self.query_feat().astype(dtype)[None], len(pixels_BhwD), axis=0)
        predictions = [self._predict(x, pixels_BhwD)]
        for number in range(self.spec.depth):
            level = number % LEVELS
            blocked = _outside(predictions[-1].masks_BQhw, size_of(maps[level]))
            cross = self.transformer_cross_attention_layers[number]
            x = cross(x, query_embed, sources[level], positions[level], blocked)
            x = self.transformer_self_attention_layers[number](x, query_embed)
            x = self.transformer_ffn_layers[number](x)
            predictions.append(self._predict(x, pixels_BhwD))
        return predictions

    def _predict(self, x_BQD, pixels_BhwD) -> Prediction:
        x_BQD = self.post_norm(x_BQD)
        masks = jnp.einsum("bqd,bhwd->bqhw", self.mask_embed(x_BQD), pixels_BhwD)
        return Prediction(self.class_embed(x_BQD), masks)


def at_size(masks_BQhw: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Logits of masks at another size, bilinear."""
    last = jnp.moveaxis(masks_BQhw, 1, -1)
    return jnp.moveaxis(resize(last, size, method="bilinear", antialias=False), -1, 1)


def _outside(masks_BQhw: jax.Array, size: tuple[int, int]) -> jax.Array:
    """True [B, 1, Q, h w] beyond a query's mask; a query with no pixel looks everywhere."""
    small = jax.lax.stop_gradient(at_size(masks_BQhw, size))
    outside = (small < 0).reshape(*small.shape[:2], -1)
    return (outside & ~jnp.all(outside, axis=-1, keepdims=True))[:, None]


class MaskHead(nn.Module):
    """Four maps, finest first -> predictions of the learned queries and after every layer."""

    spec: MaskSpec

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[Prediction]:
        inputs = PixelDecoder(self.spec.pixel, name="pixel_decoder")(maps)
        return Predictor(self.spec, name="predictor")(*inputs)


class Segmenter(nn.Module):
    """Image [B, H, W, C] and tokens [B, P, D] of four blocks -> predictions, the last one last."""

    adapter: AdapterSpec
    spec: MaskSpec

    @nn.compact
    def __call__(self, images, levels: Sequence[jax.Array], *, train: bool) -> list[Prediction]:
        maps = Adapter(self.adapter, name="segmentation_model_0")(images, levels, train=train)
        return MaskHead(self.spec, name="segmentation_model_1")(maps)


def semantic(prediction: Prediction, size: tuple[int, int]) -> jax.Array:
    """Scores [B, H, W, classes] of every pixel: what the queries claim, weighted by their masks."""
    classes = jax.nn.softmax(prediction.classes_BQK)[..., :-1]
    masks = jax.nn.sigmoid(at_size(prediction.masks_BQhw, size))
    return jnp.einsum("bqk,bqhw->bhwk", classes, masks)


# The released head, on ADE20K's 150 classes and tokens of the 7B model.
SEGMENTER_7B = Segmenter(AdapterSpec(width=4096), MaskSpec(classes=150))

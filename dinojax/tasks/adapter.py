"""ViT-Adapter without injectors: maps at four sizes from an image and a frozen ViT's tokens.

Chen et al., arXiv:2205.08534, as in DINOv3, arXiv:2508.10104, D.10: nothing flows back into the
backbone, whose tokens are only looked at.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.layers import gelu, wide
from dinojax.ops.interpolate import resize
from dinojax.tasks.deformable import (
    DeformableAttention,
    Sizes,
    centres,
    level_embedding,
    spread_levels,
)
from dinojax.tasks.layers import BatchNorm, Conv, LayerNorm, Linear, UpConv, size_of


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """Static choices; as in the released segmentation head."""

    width: int  # of the backbone's tokens
    stem: int = 64  # channels of the first convolutions
    heads: int = 16
    points: int = 4
    share: float = 0.5  # of the width that attention has
    ffn_share: float = 0.25  # of the width inside the convolutional network
    extra: int = 2  # looks more at the tokens of the last block
    drop_path: float = 0.0  # rate at which an image skips the network of a look, in training


_EPS = 1e-6  # of its layer norms
LEVELS = 3  # of queries: at 1/8, 1/16 and 1/32 of the image


class SpatialPrior(nn.Module):
    """Image [B, H, W, C] -> maps of `width` channels at 1/4, 1/8, 1/16 and 1/32 of it."""

    spec: AdapterSpec

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> list[jax.Array]:
        stem, x = self.spec.stem, images
        for number, stride in ((0, 2), (3, 1), (6, 1)):
            x = self._step(x, "stem", number, stem, stride=stride, train=train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        maps = [x]
        for number, factor in ((2, 2), (3, 4), (4, 4)):
            x = self._step(x, f"conv{number}", 0, factor * stem, stride=2, train=train)
            maps.append(x)
        return [
            Conv(self.spec.width, name=f"fc{number}")(x) for number, x in enumerate(maps, start=1)
        ]

    def _step(self, x, name: str, number: int, width: int, *, stride: int, train: bool):
        x = Conv(width, 3, stride=stride, bias=False, name=f"{name}_{number}")(x)
        return jax.nn.relu(BatchNorm(name=f"{name}_{number + 1}")(x, train=train))


class Depthwise(nn.Module):
    """A 3 x 3 kernel for each channel, the same on every level."""

    @nn.compact
    def __call__(self, x_BSF: jax.Array, sizes: Sizes) -> jax.Array:
        conv = Conv(x_BSF.shape[-1], 3, depthwise=True, name="dwconv")
        parts = [conv(part) for part in split(x_BSF, sizes)]
        return jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in parts], axis=1)


class ConvFfn(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x_BSD: jax.Array, sizes: Sizes) -> jax.Array:
        x = Linear(self.hidden, name="fc1")(x_BSD)
        x = gelu(Depthwise(name="dwconv")(x, sizes))
        return Linear(x_BSD.shape[-1], name="fc2")(x)


class Extractor(nn.Module):
    """A look of the queries at one block's tokens, and a convolutional network."""

    spec: AdapterSpec

    @nn.compact
    def __call__(self, query_BSD, tokens_BPD, sizes: Sizes, grid: tuple[int, int], *, train: bool):
        spec = self.spec
        references = jnp.asarray(centres(sizes))[None, :, None]
        query = LayerNorm(_EPS, name="query_norm")(query_BSD)
        tokens = LayerNorm(_EPS, name="feat_norm")(tokens_BPD)
        attention = DeformableAttention(spec.heads, spec.points, spec.share, name="attn")
        query_BSD = query_BSD + attention(query, references, tokens, (grid,))
        hidden = int(spec.width * spec.ffn_share)
        x = ConvFfn(hidden, name="ffn")(LayerNorm(_EPS, name="ffn_norm")(query_BSD), sizes)
        if train and spec.drop_path:
            keep = 1 - spec.drop_path
            kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (len(x), 1, 1))
            x = jnp.where(kept, x / keep, 0)
        return query_BSD + x


class Interaction(nn.Module):
    spec: AdapterSpec
    extra: int

    @nn.compact
    def __call__(self, query_BSD, *inputs, train: bool) -> jax.Array:
        names = ["extractor", *(f"extra_extractors_{number}" for number in range(self.extra))]
        for name in names:
            query_BSD = Extractor(self.spec, name=name)(query_BSD, *inputs, train=train)
        return query_BSD


class Adapter(nn.Module):
    """Image [B, H, W, C] and tokens [B, P, D] of some blocks -> four maps [B, h, w, D].

    They are at 1/4, 1/8, 1/16 and 1/32 of the image, whose sides divide by 32; the tokens are at
    1/16. train: batch norm by the batch, and drop path, which asks for a key named `dropout`.
    """

    spec: AdapterSpec

    @nn.compact
    def __call__(
        self, images: jax.Array, levels: Sequence[jax.Array], *, train: bool
    ) -> list[jax.Array]:
        spec, (rows, columns) = self.spec, images.shape[1:3]
        if rows % 32 or columns % 32:
            raise ValueError(f"an image of {rows} x {columns}, whose sides must divide by 32.")
        grid = rows // 16, columns // 16
        sizes = tuple((rows // stride, columns // stride) for stride in (8, 16, 32))
        finest, *maps = SpatialPrior(spec, name="spm")(images, train=train)
        embed = level_embedding(self, "level_embed", LEVELS, spec.width)
        flat = [x.reshape(len(x), -1, spec.width) for x in maps]
        query = jnp.concatenate(flat, axis=1)
        query += spread_levels(embed, sizes).astype(query.dtype)[None]
        for number, tokens in enumerate(levels):
            extra = spec.extra if number == len(levels) - 1 else 0
            interaction = Interaction(spec, extra, name=f"interactions_{number}")
            query = interaction(query, tokens, sizes, grid, train=train)
        maps = split(query, sizes)
        maps = [UpConv(spec.width, 2, name="up")(maps[0]) + finest, *maps]
        found = []
        for number, (x, tokens) in enumerate(zip(maps, levels, strict=True)):
            seen = wide(tokens).reshape(len(tokens), *grid, spec.width)
            x = x + resize(seen, size_of(x), method="bilinear", antialias=False)
            found.append(BatchNorm(name=f"norm{number + 1}")(x, train=train))
        return found


def split(x_BSD: jax.Array, sizes: Sizes) -> list[jax.Array]:
    """Maps [B, h, w, D] of the levels, which lie one after another."""
    maps, start = [], 0
    for rows, columns in sizes:
        part = x_BSD[:, start : start + rows * columns]
        maps.append(part.reshape(len(x_BSD), rows, columns, x_BSD.shape[-1]))
        start += rows * columns
    return maps

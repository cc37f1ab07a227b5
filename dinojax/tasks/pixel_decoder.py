"""From four maps of a backbone to three that have seen each other, and features of every pixel.

The pixel decoder of Mask2Former, Cheng et al., arXiv:2112.01527, section 3.2.2.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.ops.interpolate import resize
from dinojax.tasks import sines
from dinojax.tasks.adapter import split
from dinojax.tasks.deformable import (
    DeformableAttention,
    Sizes,
    centres,
    level_embedding,
    spread_levels,
)
from dinojax.tasks.layers import Conv, GroupNorm, LayerNorm, feed_forward, size_of

LEVELS, GROUPS = 3, 32


@dataclasses.dataclass(frozen=True)
class PixelSpec:
    """Static choices; as in the released segmentation head."""

    width: int = 2048
    heads: int = 16
    ffn: int = 4096
    depth: int = 6
    points: int = 4


class Layer(nn.Module):
    spec: PixelSpec

    @nn.compact
    def __call__(self, x_BSD, positions_SD, references, sizes: Sizes) -> jax.Array:
        spec = self.spec
        attention = DeformableAttention(spec.heads, spec.points, name="self_attn")
        y = attention(x_BSD + positions_SD[None], references, x_BSD, sizes)
        x_BSD = LayerNorm(name="norm1")(x_BSD + y)
        return LayerNorm(name="norm2")(x_BSD + feed_forward(x_BSD, spec.ffn))


class Layers(nn.Module):
    spec: PixelSpec

    @nn.compact
    def __call__(self, x_BSD, *inputs) -> jax.Array:
        for number in range(self.spec.depth):
            x_BSD = Layer(self.spec, name=f"layers_{number}")(x_BSD, *inputs)
        return x_BSD


class Encoder(nn.Module):
    """Maps, coarse first, that look at each other."""

    spec: PixelSpec

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        sizes, width, dtype = tuple(size_of(x) for x in maps), self.spec.width, maps[0].dtype
        flat = [x.reshape(len(x), -1, width) for x in maps]
        positions = [sines.of_map(size, width, dtype).reshape(-1, width) for size in sizes]
        embed = level_embedding(self, "level_encoding", len(maps), width)
        positions_SD = jnp.concatenate(positions) + spread_levels(embed, sizes).astype(dtype)
        # Its own middle, on every level.
        references = jnp.repeat(jnp.asarray(centres(sizes), dtype)[None, :, None], len(maps), 2)
        layers = Layers(self.spec, name="encoder")
        x_BSD = layers(jnp.concatenate(flat, axis=1), positions_SD, references, sizes)
        return split(x_BSD, sizes)


class PixelDecoder(nn.Module):
    """Maps at 1/4, 1/8, 1/16, 1/32 -> (pixel features at 1/4, [maps at 1/32, 1/16, 1/8])."""

    spec: PixelSpec

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        finest, *others = maps
        inputs, width = [], self.spec.width
        for number, x in enumerate(reversed(others)):
            x = Conv(width, name=f"input_convs_{number}_0")(x)
            inputs.append(GroupNorm(GROUPS, name=f"input_convs_{number}_1")(x))
        seen = Encoder(self.spec, name="encoder")(inputs)
        x = Conv(width, bias=False, groups=GROUPS, name="lateral_convs_0")(finest)
        x += resize(seen[-1], size_of(x), method="bilinear", antialias=False)
        x = Conv(width, 3, bias=False, groups=GROUPS, name="output_convs_0")(x)
        return Conv(width, name="mask_feature")(jax.nn.relu(x)), seen

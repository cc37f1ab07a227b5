"""DPT on the frozen features of four blocks: from tokens to a map with logits at each place.

Ranftl et al., arXiv:2103.13413, as in DINOv3, arXiv:2508.10104, D.11 and 8.3.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.layers import gelu, wide
from dinojax.ops.interpolate import resize, resize_corners
from dinojax.tasks.layers import BatchNorm, Conv, ConvModule, Linear, UpConv, size_of


@dataclasses.dataclass(frozen=True)
class DptSpec:
    """Static choices. Levels are blocks in their order; the first one has the finest map."""

    level_widths: tuple[int, ...] = (2048, 2048, 2048, 2048)  # channels of the resized maps
    width: int = 512  # of the fused map
    hidden: int = 32  # of the last layer but one
    outputs: int = 256
    readout: bool = False  # cls is mixed into each patch
    batch_norm: bool = True  # of the patches
    bias: bool = False  # of the residual units
    project: bool = True  # a convolution between the last fusion and the head
    dropout: float = 0.0  # rate before the last layer


class Fusion(nn.Module):
    """A coarser map, and maybe a lateral one at its size -> twice its size."""

    spec: DptSpec

    @nn.compact
    def __call__(self, x_BhwD: jax.Array, lateral_BhwD: jax.Array | None = None) -> jax.Array:
        if lateral_BhwD is not None:
            # The lateral map takes the size of the path, so that odd grids end larger.
            if lateral_BhwD.shape != x_BhwD.shape:
                size = size_of(x_BhwD)
                lateral_BhwD = resize(lateral_BhwD, size, method="bilinear", antialias=False)
            x_BhwD = x_BhwD + self._residual("res_conv_unit1", lateral_BhwD)
        x_BhwD = self._residual("res_conv_unit2", x_BhwD)
        x_BhwD = resize_corners(x_BhwD, (2 * x_BhwD.shape[1], 2 * x_BhwD.shape[2]))
        return ConvModule(self.spec.width, name="project")(x_BhwD)

    def _residual(self, name: str, x: jax.Array) -> jax.Array:
        return Residual(self.spec.bias, name=name)(x)


class Residual(nn.Module):
    """x + conv2(relu(conv1(relu x)))."""

    bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for name in ("conv1", "conv2"):
            y = ConvModule(x.shape[-1], size=3, bias=self.bias, name=name)(jax.nn.relu(y))
        return x + y


class Reassemble(nn.Module):
    """Tokens of four blocks -> maps of 4, 2, 1 and 1/2 times the grid's rows and columns."""

    spec: DptSpec

    @nn.compact
    def __call__(self, levels: Sequence[tuple[jax.Array, jax.Array]], *, train: bool) -> list:
        return [self._level(number, *tokens, train=train) for number, tokens in enumerate(levels)]

    def _level(self, number: int, patches_BhwD, cls_BD, *, train: bool) -> jax.Array:
        x, width = wide(patches_BhwD), self.spec.level_widths[number]
        if self.spec.readout:
            cls = jnp.broadcast_to(wide(cls_BD)[:, None, None], x.shape)
            both = jnp.concatenate([x, cls], axis=-1)
            x = gelu(Linear(x.shape[-1], name=f"readout_projects_{number}_0")(both))
        if self.spec.batch_norm:
            x = BatchNorm(name=f"batchnorm_layers_{number}")(x, train=train)
        x = ConvModule(width, name=f"projects_{number}")(x)
        name = f"resize_layers_{number}"
        if number < 2:
            return UpConv(width, factor=4 >> number, name=name)(x)
        return x if number == 2 else Conv(width, 3, stride=2, name=name)(x)


class Logits(nn.Module):
    """The last layers: half the channels at twice the size, then the hidden ones."""

    spec: DptSpec

    @nn.compact
    def __call__(self, x_BhwD: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(self.spec.width // 2, 3, name="head_0")(x_BhwD)
        x = resize_corners(x, (2 * x.shape[1], 2 * x.shape[2]))
        x = jax.nn.relu(Conv(self.spec.hidden, 3, name="head_2")(x))
        x = nn.Dropout(self.spec.dropout, deterministic=not train)(x)
        return Conv(self.spec.outputs, name="head_4")(x)


class Dpt(nn.Module):
    """Patches [B, h, w, D] and cls [B, D] of four blocks -> logits [B, H, W, outputs].

    H = 32 ceil(h / 2), which is 16 h where h is even; W likewise. train: batch norm by the batch,
    and dropout, which asks for a key named `dropout`.
    """

    spec: DptSpec

    @nn.compact
    def __call__(self, levels: Sequence[tuple[jax.Array, jax.Array]], *, train: bool) -> jax.Array:
        spec = self.spec
        maps = Reassemble(spec, name="reassemble_blocks")(levels, train=train)
        maps = [
            ConvModule(spec.width, 3, bias=False, name=f"convs_{number}")(x)
            for number, x in enumerate(maps)
        ]
        x = Fusion(spec, name="fusion_blocks_0")(maps[-1])
        for number, lateral in enumerate(maps[-2::-1], 1):
            x = Fusion(spec, name=f"fusion_blocks_{number}")(x, lateral)
        if spec.project:
            x = jax.nn.relu(ConvModule(spec.width, 3, name="project")(x))
        return Logits(spec, name="conv_depth")(x, train=train)


# Released heads: the depth head of the 7B model and that of canopy heights (CHMv2).
DEPTH_7B = DptSpec()
DEPTH_L = dataclasses.replace(DEPTH_7B, level_widths=(1024,) * 4)
CANOPY = DptSpec(
    level_widths=(128, 256, 512, 1024),
    width=256,
    hidden=128,
    readout=True,
    batch_norm=False,
    bias=True,
    project=False,
)

"""ConvNeXt, arXiv:2201.03545, as DINOv3 (arXiv:2508.10104) distils it: pixels -> Features.

cls is the mean of the last map, patches are its entries, both through the same final norm. Like
the ViT the model draws no random numbers: what drop path does comes in, made by `make_draws`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.models.block import axes_of, with_block
from dinojax.models.layers import Linear, Norm, gelu, named, normal, spread, wide
from dinojax.models.remat import REMAT
from dinojax.models.vit import Features
from dinojax.ops import interpolate
from dinojax.sharding import gather, mesh

NUM_STAGES = 4
NORM = "layernorm"  # every norm has epsilon 1e-6


@dataclasses.dataclass(frozen=True)
class ConvNextSpec:
    """Static choices. layer_scale: initial LayerScale, None = none."""

    depths: tuple[int, ...]  # blocks of each stage
    widths: tuple[int, ...]  # channels of each stage
    channels: int = 3
    layer_scale: float | None = 1e-6
    drop_path: float = 0.0  # probability in the last block; 0 in the first and linear between
    remat: str = "none"
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    reduce: jnp.dtype = jnp.dtype(jnp.float32)  # in which gradients of kernels cross devices

    @property
    def width(self) -> int:
        """Channels D of cls and patches."""
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """What `intermediate` counts: stages, not blocks."""
        return NUM_STAGES

    @property
    def patch_size(self) -> int:
        """Pixels from one entry of the last map to the next: 4 in the stem, then halved thrice."""
        return 4 * 2 ** (NUM_STAGES - 1)

    @property
    def num_registers(self) -> int:
        return 0

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last map; what is left over at the right and bottom is lost."""
        return height // self.patch_size, width // self.patch_size


def make_draws(
    drop_keys_U: jax.Array, spec: ConvNextSpec, *, num_sequences: int, tag: int
) -> jax.Array | None:
    """What each block multiplies its branch with, of a crop set of U groups: [blocks, (U b)].

    An image's branch is dropped with the block's probability q and else divided by 1 - q. tag:
    number of the crop set; each set, block and image draws its own. None without drop path.
    """
    if not spec.drop_path:
        return None
    rates = np.linspace(0.0, spec.drop_path, sum(spec.depths))[:, None]

    def draw(key):
        uniform = jax.random.uniform(jax.random.fold_in(key, tag), (len(rates), num_sequences))
        return jnp.where(uniform >= rates, 1.0 / (1.0 - rates), 0.0)

    return jnp.moveaxis(jax.vmap(draw)(drop_keys_U), 0, 1).reshape(len(rates), -1)


class Conv(nn.Module):
    """A convolution [size, size, inputs / groups, outputs] over [B, H, W, inputs], with bias.

    reduce: of a kernel as it is stored: the dtype in which its gradient crosses devices; None where
    the caller has gathered it (blocks of a scan).
    """

    size: int
    inputs: int
    outputs: int
    dtype: jnp.dtype
    stride: int = 1
    padding: int = 0
    groups: int = 1
    reduce: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        shape = (self.size, self.size, self.inputs // self.groups, self.outputs)
        axes = (None, None, None, "width")
        kernel = self.param("kernel", named(normal(0.02), axes), shape)
        bias = self.param("bias", named(nn.initializers.zeros, [None]), (self.outputs,))
        x_BHWC = x_BHWC.astype(self.dtype)
        if self.reduce is None:
            y = self._convolve(kernel, x_BHWC)
        else:  # on each device by itself: the partitioner would sum its gradient as it is made
            dtypes = {"dtype": self.dtype, "reduce": self.reduce}
            y = gather.with_weights(self._convolve, kernel, axes, x_BHWC, **dtypes)
        return y + spread(bias, y)

    def _convolve(self, kernel: jax.Array, x_BHWC: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x_BHWC,
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )


class Downsample(nn.Module):
    """Stem: 4 x 4 convolution of stride 4, then norm. Later stages: norm, then 2 x 2 of stride 2.

    The spec's `widths` and `channels` give the sizes before and after stage `stage`.
    """

    spec: ConvNextSpec
    stage: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        spec, norm = self.spec, Norm(NORM, self.spec.dtype, name="norm")
        outputs = spec.widths[self.stage]
        if self.stage == 0:
            stem = Conv(4, spec.channels, outputs, spec.dtype, 4, reduce=spec.reduce, name="conv")
            return norm(stem(x_BHWC))
        inputs = spec.widths[self.stage - 1]
        conv = Conv(2, inputs, outputs, spec.dtype, 2, reduce=spec.reduce, name="conv")
        return conv(norm(x_BHWC))


class Block(nn.Module):
    """x + factor * scale * pwconv2(gelu(pwconv1(norm(dwconv(x)))))."""

    spec: ConvNextSpec
    width: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, factor_B: jax.Array | None) -> jax.Array:
        width, dtype = self.width, self.spec.dtype
        conv = Conv(7, width, width, dtype, padding=3, groups=width, name="dwconv")
        y = Norm(NORM, dtype, name="norm")(conv(x_BHWC))
        y = gelu(Linear((width, 4 * width), ("width", "mlp"), dtype, name="pwconv1")(y))
        y = Linear((4 * width, width), ("mlp", "width"), dtype, name="pwconv2")(y)
        if self.spec.layer_scale:
            init = named(nn.initializers.constant(self.spec.layer_scale), [None])
            scale = self.param("scale1", init, (width,))
            y = y * spread(scale, y)
        if factor_B is not None:
            y = y * factor_B.astype(dtype)[:, None, None, None]
        return x_BHWC + y


@functools.cache
def block_axes(spec: ConvNextSpec, width: int):
    """The names of the axes of every parameter of a block."""
    pixels = jnp.zeros((1, 1, 1, width), spec.dtype)
    return axes_of(lambda key: Block(spec, width, parent=None).init(key, pixels, None))


class ConvNext(nn.Module):
    """The backbone, called as `Vit` is: `__call__` takes crop sets, `intermediate` one array."""

    spec: ConvNextSpec

    def setup(self):
        self.downsamples = [Downsample(self.spec, stage) for stage in range(NUM_STAGES)]
        self.stages = [
            self.param(f"stages_{stage}", self._init_stage, stage) for stage in range(NUM_STAGES)
        ]
        self.norm = Norm(NORM, self.spec.dtype)

    def _init_stage(self, key, stage: int):
        """Parameters of a stage's blocks, stacked along a leading axis named "depth"."""
        spec, width = self.spec, self.spec.widths[stage]
        pixels = jnp.zeros((1, 1, 1, width), spec.dtype)

        def init(key):
            return Block(spec, width, parent=None).init(key, pixels, None)["params"]

        stacked = jax.vmap(init)(jax.random.split(key, spec.depths[stage]))
        return nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "depth"})

    def __call__(
        self,
        crops: Sequence[jax.Array],
        masks: Sequence[jax.Array | None] | None = None,
        draws: Sequence[jax.Array | None] | None = None,
        *,
        train: bool = False,
    ) -> list[Features]:
        """crops: normalised sets [B, H, W, C]; draws: one of `make_draws` per set, or None.

        masks and train are there so that a ViT can be replaced, and change nothing: a
        convolution has no tokens to hide, and there is one norm. `registers` is [B, 0, D] and
        `prenorm` the patches alone before the norm, [B, P, D].
        """
        del masks, train
        sets = list(crops)
        for stage in range(NUM_STAGES):
            sets = self._stage(sets, draws, stage)
        return [self._features(x, norm=True) for x in sets]

    def intermediate(
        self,
        images_BHWC: jax.Array,
        layers: int | Sequence[int],
        *,
        norm: bool = True,
        patch_size: int | None = None,
    ) -> list[Features]:
        """Features after some of the four stages, in ascending order whatever the order asked for.

        layers: numbers of stages from 0, or how many of the last ones. norm: apply the final norm,
        which exists for the last stage only. patch_size: resize every map (not cls, its mean) to a
        grid of that many pixels per patch, antialiased bilinear; None leaves it.
        Raises ValueError for a stage that does not exist.
        """
        first = range(NUM_STAGES - layers, NUM_STAGES) if isinstance(layers, int) else layers
        wanted = sorted(set(first))
        if any(not 0 <= layer < NUM_STAGES for layer in wanted):
            raise ValueError(f"layers {wanted}: this backbone has stages 0 to {NUM_STAGES - 1}.")
        size = None
        if patch_size is not None:
            size = (images_BHWC.shape[1] // patch_size, images_BHWC.shape[2] // patch_size)
        sets, found = [images_BHWC], []
        for stage in range(max(wanted, default=-1) + 1):
            sets = self._stage(sets, None, stage)
            if stage in wanted:
                last = norm and stage == NUM_STAGES - 1
                found.append(self._features(sets[0], norm=last, size=size))
        return found

    def _stage(self, sets, draws, stage: int):
        """Downsampling, then the blocks of a stage as one scan over their stacked parameters."""
        spec, first = self.spec, sum(self.spec.depths[:stage])
        own = slice(first, first + spec.depths[stage])
        draws = [None] * len(sets) if draws is None else draws
        factors = [None if draw is None else draw[own] for draw in draws]
        width = spec.widths[stage]
        block = Block(spec, width, parent=None)
        dtypes = {"dtype": spec.dtype, "reduce": spec.reduce}

        def apply(params, sets, factors):
            pairs = zip(sets, factors, strict=True)
            return [block.apply({"params": params}, *pair) for pair in pairs]

        def body(sets, inputs):
            params, factors = inputs
            axes = block_axes(spec, width)
            return with_block(apply, params, axes, sets, factors, **dtypes), None

        body = jax.checkpoint(body, policy=REMAT[spec.remat], prevent_cse=False)
        sets = [mesh.constrain(self.downsamples[stage](x), "image", None, None, None) for x in sets]
        return jax.lax.scan(body, sets, (nn.meta.unbox(self.stages[stage]), factors))[0]

    def _features(self, map_BHWD, *, norm: bool, size: tuple[int, int] | None = None) -> Features:
        dtype, num, width = self.spec.dtype, map_BHWD.shape[0], map_BHWD.shape[-1]
        cls_BD = jnp.mean(wide(map_BHWD), axis=(1, 2)).astype(dtype)
        if size is not None and size != map_BHWD.shape[1:3]:
            resized = interpolate.resize(map_BHWD, size, method="bilinear", antialias=True)
            map_BHWD = resized.astype(dtype)
        patches = map_BHWD.reshape(num, -1, width)
        registers = jnp.zeros((num, 0, width), dtype)
        if norm:
            return Features(self.norm(cls_BD), registers, self.norm(patches), patches)
        return Features(cls_BD, registers, patches, patches)

"""Projection heads: tokens -> logits over prototypes. DINOv3, arXiv:2508.10104, section 3."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.layers import Linear, gelu, l2_normalize, named, normal, product, wide
from dinojax.sharding import mesh


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """The keys of a head's config section; `inputs` is the width of the tokens."""

    inputs: int
    num_layers: int
    hidden: int
    bottleneck: int
    prototypes: int  # K; 0 = none, and the bottleneck is the output
    bias: bool = True
    prototype_norm: str = "none"  # none | unit | weight_norm
    dtype: jnp.dtype = jnp.dtype(jnp.bfloat16)
    reduce: jnp.dtype = jnp.dtype(jnp.float32)  # in which gradients of kernels cross devices


class Head(nn.Module):
    """MLP with exact GELU -> unit-length bottleneck [..., Z] -> logits [..., K], no final bias.

    The two halves can be called alone (`method=Head.bottleneck`, `method=Head.logits`), and
    `method=Head.kernel` gives the prototypes.
    `prototype_norm`: `none` is DINOv3; `unit` divides each prototype by its length; `weight_norm`
    also multiplies it by a learned one, as DINOv2 does.
    """

    spec: HeadSpec

    def setup(self):
        spec = self.spec
        widths = [spec.inputs] + [spec.hidden] * (spec.num_layers - 1) + [spec.bottleneck]
        self.layers = [
            Linear(
                (widths[i], widths[i + 1]),
                ("width" if i == 0 else "hidden", None),
                spec.dtype,
                bias=spec.bias,
                reduce=spec.reduce,
                name=f"layer{i}",
            )
            for i in range(spec.num_layers)
        ]
        if spec.prototypes:
            self.prototypes = Prototypes(spec, name="prototypes")

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens [..., D] -> logits [..., K] in the dtype of computation."""
        bottleneck = self.bottleneck(tokens)
        return self.logits(bottleneck) if self.spec.prototypes else bottleneck

    def bottleneck(self, tokens: jax.Array) -> jax.Array:
        """tokens [..., D] -> unit vectors [..., Z]."""
        return l2_normalize(self.raw_bottleneck(tokens)).astype(self.spec.dtype)

    def raw_bottleneck(self, tokens: jax.Array) -> jax.Array:
        """tokens [..., D] -> the same vectors [..., Z] before they get unit length."""
        x = _with_images(tokens)
        for i, layer in enumerate(self.layers):
            x = _with_images(layer(x if i == 0 else gelu(x)))
        return x

    def logits(self, bottleneck: jax.Array) -> jax.Array:
        """unit vectors [..., Z] -> logits [..., K]."""
        return _with_images(product(bottleneck, self.prototypes()))

    def kernel(self) -> jax.Array:
        """The prototypes [Z, K] whose products with unit vectors are logits; see `Prototypes`."""
        return self.prototypes()


class Prototypes(nn.Module):
    """The last layer, without bias: its kernel [Z, K], which is rounded where it is used.

    In the dtype in which its gradient crosses devices.
    """

    spec: HeadSpec

    @nn.compact
    def __call__(self) -> jax.Array:
        spec = self.spec
        init = normal(0.02)
        if spec.prototype_norm == "weight_norm":
            bound = spec.bottleneck**-0.5  # the framework default of the reference's linear layer
            init = nn.initializers.uniform(2 * bound)
            init = _shifted(init, -bound)
        shape = (spec.bottleneck, spec.prototypes)
        kernel = self.param("kernel", named(init, (None, "prototype")), shape)
        if spec.prototype_norm != "none":
            kernel = l2_normalize(kernel.T).T
        if spec.prototype_norm == "weight_norm":
            scale = self.param("scale", named(nn.initializers.ones, ["prototype"]), shape[1:])
            kernel = kernel * wide(scale)[None, :]
        return kernel.astype(jnp.promote_types(spec.dtype, spec.reduce))


def _with_images(x: jax.Array) -> jax.Array:
    """x where its images are, so that with sharded weights it is these that travel.

    Left alone, the partitioner spreads the channels as the weights are spread, and every device
    receives the activations of all images.
    """
    return mesh.constrain(x, "image")


def _shifted(init, offset):
    return lambda *args: init(*args) + offset

"""Heads that predict metadata from cls tokens (arXiv:2606.05107). Always in float32."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.layers import Linear, gelu, wide


@dataclasses.dataclass(frozen=True)
class GuideHeadSpec:
    """Widths of a guide's head."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    dtype: jnp.dtype = jnp.dtype(jnp.float32)


class GuideHead(nn.Module):
    """MLP with exact GELU: tokens [..., D] -> outputs [..., C] in float32 at least."""

    spec: GuideHeadSpec

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        spec = self.spec
        widths = (spec.inputs, *spec.hidden, spec.outputs)
        x = wide(tokens).astype(jnp.promote_types(spec.dtype, tokens.dtype))
        for number, shape in enumerate(zip(widths, widths[1:], strict=False)):
            x = gelu(x) if number else x
            x = Linear(shape, (None, None), x.dtype, name=f"layer{number}")(x)
        return x

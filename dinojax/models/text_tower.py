"""The text side of dino.txt: token ids -> features of every token -> one vector per text.

A causal transformer as in CLIP (arXiv:2103.00020), pre-norm, with the sizes of DINOv3
(arXiv:2508.10104). Its blocks are those of the vision transformer.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax.models.block import CausalSpec, VitSpec, init_blocks, run_blocks
from dinojax.models.layers import Linear, Norm, named, normal, spread, wide
from dinojax.sharding import gather, mesh

POOLS = ("end", "first", "last")  # end: the first token of the largest id, which ends a text
NORM = "layernorm_1e5"


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Static choices of tower and head. head_depth: blocks of the head, 0 = none."""

    vocabulary: int  # ids
    context: int  # tokens of a text
    width: int
    depth: int
    num_heads: int
    outputs: int  # channels of a text's vector
    ffn_ratio: float = 4.0
    layer_scale: float | None = None
    causal: bool = True
    pool: str = "end"  # of POOLS
    head_depth: int = 0
    head_causal: bool = True
    attention: str = "plain"
    remat: str = "none"
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    reduce: jnp.dtype = jnp.dtype(jnp.float32)

    @property
    def block(self) -> VitSpec:
        """The tower's blocks."""
        return self._block(self.depth, self.layer_scale, causal=self.causal)

    @property
    def head_block(self) -> VitSpec:
        """The head's blocks."""
        return self._block(self.head_depth, None, causal=self.head_causal)

    def _block(self, depth: int, layer_scale: float | None, *, causal: bool) -> VitSpec:
        return (CausalSpec if causal else VitSpec)(
            width=self.width,
            depth=depth,
            num_heads=self.num_heads,
            ffn="mlp",
            ffn_ratio=self.ffn_ratio,
            qkv_bias=False,
            norm=NORM,
            layer_scale=layer_scale,
            attention=self.attention,
            remat=self.remat,
            dtype=self.dtype,
            reduce=self.reduce,
        )


class TextTower(nn.Module):
    """Embeddings of tokens and positions, causal blocks, a norm: ids [B, N] -> [B, N, D]."""

    spec: TextSpec

    def setup(self):
        spec = self.spec
        shape = (spec.vocabulary, spec.width)
        self.tokens = self.param("tokens", named(normal(0.02), [None, "width"]), shape)
        shape = (spec.context, spec.width)
        self.positions = self.param("positions", named(normal(0.01), [None, None]), shape)
        self.blocks = self.param("blocks", functools.partial(_init_tower, spec.block))
        self.norm = Norm(NORM, spec.dtype)

    def __call__(self, ids_BN: jax.Array) -> jax.Array:
        spec = self.spec
        # Looked up as it is stored: the gradient of a token sums over all texts that have it.
        table = gather.gather(self.tokens, None, "width", dtype=spec.dtype, reduce=spec.reduce)
        x_BND = wide(table)[ids_BN].astype(spec.dtype)
        positions = self.positions[: ids_BN.shape[1]]
        x_BND = mesh.constrain(x_BND + spread(positions, x_BND), "image", None, None)
        return self.norm(run_blocks(spec.block, self.blocks, x_BND))


class TextHead(nn.Module):
    """The tower's tokens -> one vector per text [B, E]: blocks if any, projection, one token."""

    spec: TextSpec

    def setup(self):
        spec = self.spec
        if spec.head_depth:
            self.blocks = self.param("blocks", functools.partial(init_blocks, spec.head_block))
            self.norm = Norm(NORM, spec.dtype)
        self.proj = Linear(
            (spec.width, spec.outputs),
            ("width", None),
            spec.dtype,
            bias=False,
            init=normal(spec.width**-0.5),
            reduce=spec.reduce,
        )

    def __call__(self, x_BND: jax.Array, ids_BN: jax.Array) -> jax.Array:
        """ids: of the tokens, to find the end of each text."""
        if self.spec.head_depth:
            x_BND = self.norm(run_blocks(self.spec.head_block, self.blocks, x_BND))
        return self.proj(pooled(x_BND, ids_BN, pool=self.spec.pool))


def pooled(x_BND: jax.Array, ids_BN: jax.Array, *, pool: str) -> jax.Array:
    """The token that stands for a text, [B, D]. Raises ValueError for a pool not of POOLS."""
    if pool not in POOLS:
        raise ValueError(f"text.pool={pool!r} is not one of {', '.join(POOLS)}.")
    if pool == "end":
        ends_B11 = jnp.argmax(ids_BN, axis=1)[:, None, None]
        return jnp.take_along_axis(x_BND, ends_B11, axis=1)[:, 0]
    return x_BND[:, 0 if pool == "first" else -1]


def _init_tower(spec: VitSpec, key):
    """Blocks with the standard deviations of CLIP, instead of those of a vision transformer."""
    width, deep = spec.width, (2 * spec.depth) ** -0.5
    stds = {
        ("attn", "qkv"): width**-0.5,
        ("attn", "proj"): width**-0.5 * deep,
        ("mlp", "fc1"): (2 * width) ** -0.5,
        ("mlp", "fc2"): width**-0.5 * deep,
    }
    blocks = init_blocks(spec, key)
    for (part, layer), std in stds.items():
        kernel = blocks[part][layer]["kernel"]
        scaled = kernel.value * (std / 0.02)  # normal numbers, of a Linear's own deviation
        blocks[part][layer]["kernel"] = kernel.replace_boxed(scaled)
    return blocks

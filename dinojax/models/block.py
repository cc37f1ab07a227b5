"""Blocks of a vision transformer, and the static choices they are made from.

Crop sets (global, local) go through each block together, so that its weights are gathered once.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jax.ad_checkpoint import checkpoint_name

from dinojax.models import rope as rope_lib
from dinojax.models.layers import Ffn, Linear, Named, Norm, ffn_width, named, spread
from dinojax.models.remat import ATTENTION, over_blocks
from dinojax.ops import subset
from dinojax.ops.attention import OPAQUE, attention
from dinojax.ops.packing import pack, unpack
from dinojax.sharding import gather, mesh


@dataclasses.dataclass(frozen=True)
class VitSpec:
    """Static choices; names and meaning as in the `model` section of the config."""

    width: int
    depth: int
    num_heads: int
    ffn: str = "mlp"
    ffn_ratio: float = 4.0
    qkv_bias: bool = True
    proj_bias: bool = True
    ffn_bias: bool = True
    mask_k_bias: bool = False
    patch_size: int = 16
    channels: int = 3
    num_registers: int = 0
    norm: str = "layernorm"
    layer_scale: float | None = 1e-5
    drop_path: float = 0.0
    untie_cls_norm: bool = False
    untie_local_cls_norm: bool = False
    attention: str = "plain"
    remat: str = "none"
    unroll: int = 1  # blocks in a row in the program, between turns of its loop
    position: str = "rope"  # rope | learned (DINOv2)
    position_size: int = 224  # pixels, side of the images whose patches the learned table has
    position_offset: float = 0.1
    position_antialias: bool = False  # DINOv2's models with registers: true, with offset 0
    rope: rope_lib.RopeSpec = rope_lib.RopeSpec()
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    reduce: jnp.dtype = jnp.dtype(jnp.float32)  # in which gradients of kernels cross devices
    causal: ClassVar[bool] = False  # a token sees none behind it, as in text (CausalSpec)

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches; what is left over at the right and bottom is not seen."""
        return height // self.patch_size, width // self.patch_size


class CausalSpec(VitSpec):
    """Blocks whose tokens see only those before them."""

    causal: ClassVar[bool] = True


def axes_of(init):
    """The names of the axes of every parameter that a module's `init` makes of a key."""
    with mesh.off():
        boxes = jax.eval_shape(init, jax.random.key(0))["params"]
    return jax.tree.map(lambda box: box.names, boxes, is_leaf=lambda leaf: isinstance(leaf, Named))


@functools.cache
def block_axes(spec: VitSpec):
    """The names of the axes of every parameter of a block."""
    tokens = jnp.zeros((1, 2, spec.width), spec.dtype)
    return axes_of(lambda key: Block(spec, parent=None).init(key, [tokens], [None], [None]))


def with_block(fn, params, axes, *arrays, dtype, reduce):
    """fn(params, *arrays) of a block in a scan, with its parameters gathered once.

    axes: their names, in the shape of the parameters; the rest: see `gathering.with_weights`.
    """
    weights = unfreeze(params)
    return gather.with_weights(fn, weights, axes, *arrays, dtype=dtype, reduce=reduce)


def _repeat(tables_UPE, num_sequences: int):
    """Tables of U groups for each of their sequences; one table shared by all stays."""
    if tables_UPE is None:
        return None
    return tuple(
        t if t.ndim == 2 else jnp.repeat(t, num_sequences // len(t), axis=0) for t in tables_UPE
    )


class Attention(nn.Module):
    """Self-attention; one kernel [D, 3, A, E] makes q, k and v. A table rotates patches (RoPE)."""

    spec: VitSpec

    @nn.compact
    def __call__(self, x_TD: jax.Array, shapes, tables) -> jax.Array:
        """x_TD: tokens as `pack` makes them of sets of these shapes (B, N); tables: one per set."""
        spec = self.spec
        width, heads, head_width = spec.width, spec.num_heads, spec.head_width

        def k_bias_mask():
            return jnp.ones((3, heads, head_width)).at[1].set(0.0)

        qkv_T3AE = Linear(
            (width, 3, heads, head_width),
            ("width", None, "heads", None),
            spec.dtype,
            bias=spec.qkv_bias,
            bias_mask=k_bias_mask if spec.mask_k_bias else None,
            name="qkv",
        )(x_TD)
        seen = [
            self._attend(qkv, table)
            for qkv, table in zip(unpack(qkv_T3AE, shapes), tables, strict=True)
        ]
        return Linear(
            (heads, head_width, width),
            ("heads", None, "width"),
            spec.dtype,
            num_in=2,
            bias=spec.proj_bias,
            name="proj",
        )(pack(seen))

    def _attend(self, qkv_BN3AE, table):
        spec = self.spec
        q_BNAE, k_BNAE, v_BNAE = (qkv_BN3AE[:, :, i] for i in range(3))
        if table is not None:
            sin, cos = table
            q_BNAE, k_BNAE = (rope_lib.rotate(t, sin, cos, spec.rope) for t in (q_BNAE, k_BNAE))
        y_BNAE = attention(
            q_BNAE, k_BNAE, v_BNAE, implementation=spec.attention, causal=spec.causal
        )
        return y_BNAE if spec.attention in OPAQUE else checkpoint_name(y_BNAE, ATTENTION)


class Block(nn.Module):
    """Pre-norm block: x + scale1 * attn(norm1(x)), then the same with the MLP.

    All sets are rows of one matrix for everything but attention.
    """

    spec: VitSpec

    def setup(self):
        spec = self.spec
        self.norm1 = Norm(spec.norm, spec.dtype)
        self.attn = Attention(spec)
        self.norm2 = Norm(spec.norm, spec.dtype)
        hidden = ffn_width(spec.ffn, spec.width, spec.ffn_ratio)
        self.mlp = Ffn(spec.ffn, hidden, spec.ffn_bias, spec.dtype)
        if spec.layer_scale:
            init = named(nn.initializers.constant(spec.layer_scale), [None])
            self.scale1 = self.param("scale1", init, (spec.width,))
            self.scale2 = self.param("scale2", init, (spec.width,))

    def __call__(self, sets, tables, subsets):
        """sets: token arrays [B, N, D]; tables: per set (sin, cos) [P, E] or [U, P, E], or None;
        subsets: per set int32 [U, 2, k], or None to compute every sequence."""
        kept = [[None if s is None else s[:, i] for s in subsets] for i in range(2)]
        sets = self._branch(self._attend, sets, tables, kept[0])
        return self._branch(self._feed, sets, tables, kept[1])

    def _branch(self, function, sets, tables, kept):
        """Each set plus function of the sequences that it keeps, as `_put` adds it."""
        pairs = list(zip(sets, map(_places, sets, kept), strict=True))
        taken = [_take(x, rows) for x, rows in pairs]
        shapes = [x.shape[:2] for x in taken]
        tables = [_repeat(table, x.shape[0]) for table, x in zip(tables, taken, strict=True)]
        y_TD = function(pack(taken), shapes, tables)
        return [_put(*pair, y) for pair, y in zip(pairs, unpack(y_TD, shapes), strict=True)]

    def _attend(self, x_TD, shapes, tables):
        y_TD = self.attn(self.norm1(x_TD), shapes, tables)
        return y_TD * spread(self.scale1, y_TD) if self.spec.layer_scale else y_TD

    def _feed(self, x_TD, shapes, tables):
        del shapes, tables  # a token at a time
        y_TD = self.mlp(self.norm2(x_TD))
        return y_TD * spread(self.scale2, y_TD) if self.spec.layer_scale else y_TD


def _places(x_BND, kept_Uk):
    """What `subset` takes of a set, None where every sequence is kept."""
    return (
        None if kept_Uk is None else (kept_Uk, subset.places(kept_Uk, len(x_BND) // len(kept_Uk)))
    )


def _take(x_BND, rows):
    """The kept sequences of all groups."""
    if rows is None:
        return x_BND
    x_UkND = subset.take(x_BND.reshape(len(rows[0]), -1, *x_BND.shape[1:]), *rows)
    return x_UkND.reshape(-1, *x_BND.shape[1:])


def _put(x_BND, rows, y_BND):
    """x plus the branch on its kept sequences, scaled by b / k; the others pass by.

    Exactly k of the b sequences of a group are computed, so a drop rate q saves a share q of the
    branch's FLOPs.
    """
    if rows is None:
        return x_BND + y_BND
    num_groups, k = rows[0].shape
    y_UkND = y_BND.reshape(num_groups, k, *y_BND.shape[1:])
    y_UkND = y_UkND * jnp.asarray(len(x_BND) / num_groups / k, y_UkND.dtype)
    return x_BND + subset.put(y_UkND, *rows).reshape(x_BND.shape)


def init_blocks(spec: VitSpec, key):
    """Parameters of all blocks of a spec, stacked along a leading axis named "depth".

    They are made with plain attention, which has no part in them: not every kernel can be
    mapped over (cuDNN's with lengths of sequences cannot, jax <= 0.10.2).
    """
    spec = dataclasses.replace(spec, attention="plain")
    tokens = jnp.zeros((1, 2, spec.width), spec.dtype)

    def init(key):
        return Block(spec, parent=None).init(key, [tokens], [None], [None])["params"]

    stacked = jax.vmap(init)(jax.random.split(key, spec.depth))
    return nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "depth"})


def run_blocks(spec: VitSpec, blocks, x_BND, subsets=None):
    """Blocks whose tokens have no positions, as one scan over their stacked parameters.

    blocks: as `init_blocks` makes them; subsets: int32 [depth, U, 2, k], or None to compute every
    sequence.
    """

    def block(params, x_BND, subsets):
        return Block(spec, parent=None).apply({"params": params}, [x_BND], [None], [subsets])[0]

    def body(x_BND, inputs):
        params, subsets = inputs
        dtypes = {"dtype": spec.dtype, "reduce": spec.reduce}
        return with_block(block, params, block_axes(spec), x_BND, subsets, **dtypes), None

    inputs = nn.meta.unbox(blocks), subsets
    return over_blocks(body, x_BND, inputs, remat=spec.remat, unroll=spec.unroll)

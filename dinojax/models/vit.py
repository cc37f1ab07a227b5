"""Vision transformer of DINOv3, arXiv:2508.10104: pixels -> Features(cls, registers, patches).

With `position="learned"` it is that of DINOv2, arXiv:2304.07193. Every block drops at the same
rate, as in DINOv3 and in DINOv2's default; DINOv2's other option, a rate that grows with depth,
would keep a different number of sequences in each block of a scan, and is left out.

The model draws no random numbers: drop-path subsets and RoPE changes come in as `Draws`, made by
`make_draws` from one key per group. Crop sets (global, local) go through each block together, so
that a block's weights are gathered once.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dinojax.models import positions
from dinojax.models import rope as rope_lib
from dinojax.models.block import Block, VitSpec, block_axes, init_blocks, with_block
from dinojax.models.layers import Norm, named, normal, product, spread
from dinojax.models.remat import over_blocks
from dinojax.sharding import gather, mesh


@struct.dataclass
class Features:
    """What a backbone makes of B images. All but `prenorm` are after the final norm."""

    cls: jax.Array  # [B, D]
    registers: jax.Array  # [B, R, D]
    patches: jax.Array  # [B, P, D], row-major
    prenorm: jax.Array  # [B, N, D], the last block's output


@struct.dataclass
class Draws:
    """Randomness of one crop set in training, drawn per block and group."""

    subsets: jax.Array | None  # int32 [depth, U, 2, k]: sequences that attention and MLP keep
    rope: rope_lib.RopeDraw | None  # leading axes [depth, U]


def num_kept(num_sequences: int, drop_path: float) -> int:
    """Sequences k of a group that a branch computes; at least one."""
    return max(int(num_sequences * (1.0 - drop_path)), 1)


def make_draws(
    drop_keys_U: jax.Array, rope_keys_U: jax.Array, spec: VitSpec, *, num_sequences: int, tag: int
) -> Draws:
    """Draws for one crop set of U groups of `num_sequences` crops each.

    tag: number of the crop set; each set, block, branch and group draws its own.
    """

    fold = jax.vmap(lambda key: jax.random.fold_in(key, tag))
    subsets = changes = None
    if spec.drop_path:
        # The first k of a random order; argsort of random numbers compiles faster than a shuffle.
        shape = (spec.depth, 2, num_sequences)
        order = jax.vmap(lambda key: jnp.argsort(jax.random.uniform(key, shape)))(fold(drop_keys_U))
        subsets = order[..., : num_kept(num_sequences, spec.drop_path)].swapaxes(0, 1)
    if spec.position == "rope" and spec.rope.augments:
        draw = jax.vmap(lambda key: rope_lib.draw(key, spec.rope, spec.depth))(fold(rope_keys_U))
        changes = jax.tree.map(lambda x: x.swapaxes(0, 1), draw)
    return Draws(subsets, changes)


class PatchEmbed(nn.Module):
    """Squares of pixels -> tokens: a convolution whose stride is its size, as one product."""

    spec: VitSpec

    @nn.compact
    def __call__(self, crops_BHWC: jax.Array) -> jax.Array:
        spec, size = self.spec, self.spec.patch_size
        bound = (spec.channels * size * size) ** -0.5

        def uniform(key, shape, dtype=jnp.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        shape = (size, size, spec.channels, spec.width)
        axes = (None, None, None, "width")
        kernel = self.param("kernel", named(uniform, axes), shape)
        kernel = gather.gather(kernel, *axes, dtype=spec.dtype, reduce=spec.reduce)
        bias = self.param("bias", named(uniform, [None]), (spec.width,))
        rows, columns = spec.grid(*crops_BHWC.shape[1:3])
        x = crops_BHWC[:, : rows * size, : columns * size].astype(spec.dtype)
        x = x.reshape(-1, rows, size, columns, size, spec.channels).swapaxes(2, 3)
        x_BPD = product(x, kernel, 3).reshape(-1, rows * columns, spec.width)
        return x_BPD + spread(bias, x_BPD)


class Vit(nn.Module):
    """The backbone. `__call__` takes a list of crop sets; `intermediate` one array of images."""

    spec: VitSpec

    def setup(self):
        spec = self.spec
        width = spec.width
        self.patch_embed = PatchEmbed(spec)
        learned = spec.position == "learned"
        token = normal(1e-6 if learned else 0.02)
        self.cls_token = self.param("cls_token", named(token, [None]), (width,))
        self.mask_token = self.param("mask_token", named(nn.initializers.zeros, [None]), (width,))
        if spec.num_registers:
            shape = (spec.num_registers, width)
            self.registers = self.param("registers", named(token, [None, None]), shape)
        if learned:
            table = (1 + (spec.position_size // spec.patch_size) ** 2, width)
            self.positions = self.param("positions", named(normal(0.02), [None, None]), table)
        self.blocks = self.param("blocks", functools.partial(init_blocks, spec))
        self.norm = Norm(spec.norm, spec.dtype)
        if spec.untie_cls_norm:
            self.cls_norm = Norm(spec.norm, spec.dtype)
        if spec.untie_local_cls_norm:
            self.local_cls_norm = Norm(spec.norm, spec.dtype)

    def __call__(
        self,
        crops: Sequence[jax.Array],
        masks: Sequence[jax.Array | None] | None = None,
        draws: Sequence[Draws] | None = None,
        *,
        train: bool = False,
    ) -> list[Features]:
        """crops: normalised sets [B, H, W, C]; masks: bool [B, P] or None, true = hidden.

        train: the second set is of local crops, which have their own norm of cls and registers
        where the spec says so. draws: one per set, or None for no drop path and no RoPE change.
        """
        masks = [None] * len(crops) if masks is None else masks
        sets = [self._embed(crop, mask) for crop, mask in zip(crops, masks, strict=True)]
        grids = [self.spec.grid(*crop.shape[1:3]) for crop in crops]
        sets = self._run(sets, grids, draws, 0, self.spec.depth)
        if self.is_initializing() and self.spec.untie_local_cls_norm:
            self.local_cls_norm(sets[0])
        return [self._finish(x, local=train and i == 1) for i, x in enumerate(sets)]

    def intermediate(
        self, images_BHWC: jax.Array, layers: int | Sequence[int], *, norm: bool = True
    ) -> list[Features]:
        """Features after some blocks, in ascending order whatever the order asked for.

        layers: numbers of blocks from 0, or how many of the last ones. norm: apply the final norm.
        Raises ValueError for a block that does not exist.
        """
        depth = self.spec.depth
        wanted = range(depth - layers, depth) if isinstance(layers, int) else sorted(set(layers))
        if any(not 0 <= layer < depth for layer in wanted):
            raise ValueError(f"layers {list(wanted)}: this backbone has blocks 0 to {depth - 1}.")
        sets, done, found = [self._embed(images_BHWC, None)], 0, []
        for layer in wanted:
            sets = self._run(sets, [self.spec.grid(*images_BHWC.shape[1:3])], None, done, layer + 1)
            done = layer + 1
            found.append(self._finish(sets[0], local=False, norm=norm))
        return found

    def _embed(self, crops_BHWC, mask_BP):
        """Patch embedding with masked patches replaced, behind cls and registers: [B, N, D].

        Learned positions are added to cls and to all patches, masked or not; registers have none.
        """
        spec, num = self.spec, crops_BHWC.shape[0]
        x_BPD = self.patch_embed(crops_BHWC)
        if mask_BP is not None:
            x_BPD = jnp.where(mask_BP[..., None], spread(self.mask_token, x_BPD), x_BPD)
        prefix = self.cls_token[None]
        if spec.position == "learned":
            size = crops_BHWC.shape[1:3]
            added_PD = positions.fit(
                self.positions[1:],
                spec.grid(*size),
                square=size[0] == size[1],
                offset=spec.position_offset,
                antialias=spec.position_antialias,
            )
            x_BPD = x_BPD + spread(added_PD, x_BPD)
            prefix = prefix + self.positions[:1]
        if spec.num_registers:
            prefix = jnp.concatenate([prefix, self.registers])
        prefix = spread(prefix, jax.ShapeDtypeStruct((num, *prefix.shape), spec.dtype))
        return mesh.constrain(jnp.concatenate([prefix, x_BPD], axis=1), "image", None, None)

    def _run(self, sets, grids, draws, first, stop):
        """Blocks first..stop-1 as one scan over their stacked parameters."""
        spec = self.spec
        tables_of = self._tables(grids)
        dtypes = {"dtype": spec.dtype, "reduce": spec.reduce}
        draws = [Draws(None, None)] * len(sets) if draws is None else list(draws)

        def block(params, sets, draws):
            subsets = [draw.subsets for draw in draws]
            return Block(spec, parent=None).apply(
                {"params": params}, sets, tables_of(draws), subsets
            )

        def body(sets, inputs):
            params, draws = inputs
            axes = block_axes(spec)
            return with_block(block, params, axes, sets, draws, **dtypes), None

        part = jax.tree.map(lambda leaf: leaf[first:stop], (nn.meta.unbox(self.blocks), draws))
        return over_blocks(body, sets, part, remat=spec.remat, unroll=spec.unroll)

    def _tables(self, grids):
        """draws of one block -> sines and cosines per crop set, or None for learned positions."""
        rope = self.spec.rope
        if self.spec.position == "learned":
            return lambda draws: [None] * len(grids)
        coords = [rope_lib.coordinates(rows, columns, rope) for rows, columns in grids]
        periods = rope_lib.periods(self.spec.head_width, rope)
        fixed = [rope_lib.table(c, periods, rope) for c in coords]

        def tables(draws):
            return [
                table
                if draw.rope is None
                else rope_lib.table(rope_lib.move(c, draw.rope, rope), periods, rope)
                for table, c, draw in zip(fixed, coords, draws, strict=True)
            ]

        return tables

    def _finish(self, x_BND, *, local, norm=True):
        spec, num_prefix = self.spec, 1 + self.spec.num_registers
        prefix, patches = x_BND[:, :num_prefix], x_BND[:, num_prefix:]
        if norm:
            prefix_norm = self.norm
            if spec.untie_cls_norm:
                prefix_norm = self.cls_norm
            if local and spec.untie_local_cls_norm:
                prefix_norm = self.local_cls_norm
            prefix, patches = prefix_norm(prefix), self.norm(patches)
        return Features(prefix[:, 0], prefix[:, 1:], patches, x_BND)

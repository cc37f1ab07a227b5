"""What a block keeps for its backward pass; tests/models/test_vit.py has what it computes."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import print_saved_residuals

from dinojax.models.block import Block, VitSpec, block_axes, with_block
from dinojax.models.remat import REMAT
from dinojax.sharding import mesh


def test_the_backward_pass_keeps_no_gathered_weight(capsys):
    """Of all blocks together they would be the whole network on every device."""
    spec = VitSpec(width=32, depth=1, num_heads=2)
    tokens = jnp.zeros((8, 5, 32))
    made = Block(spec, parent=None).init(jax.random.key(0), [tokens], [None], [None])["params"]

    def apply(params, sets):
        return Block(spec, parent=None).apply({"params": params}, sets, [None], [None])

    def block(params, x):
        return with_block(
            apply, params, block_axes(spec), [x], dtype=spec.dtype, reduce=spec.reduce
        )[0]

    def kept(remat):
        total = lambda *x: jnp.sum(jax.checkpoint(block, policy=REMAT[remat])(*x))  # noqa: E731
        with mesh.use(mesh.make("fsdp")):
            print_saved_residuals(total, nn.meta.unbox(made), tokens)
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if "argument" not in line]

    # A device's part of what is kept leads with its image or its tokens, of a weight with all rows.
    rows = ("f32[8,", "f32[40,")
    assert kept("none") and all(line.startswith(rows) for line in kept("none"))
    assert kept("full") == []
    # What attention gives, heads apart, is all that is kept beside products with weights.
    assert len(kept("products")) == len(kept("dots")) + 1
    assert sum(line.startswith("f32[8,5,2,16]") for line in kept("products")) == 1
    assert not any(line.startswith("f32[8,5,2,16]") for line in kept("dots"))

"""What the backward pass keeps of a block, and how blocks follow each other in a program."""

from collections.abc import Callable
from typing import Any

import jax

ATTENTION = "attention"  # name of what attention gives, where it is no kernel of another library
# What only arranges anew, or repeats.
ARRANGED = ("all_gather", "reshape", "transpose", "broadcast_in_dim", "gather")


def _all_but_gathered(primitive, *operands, **params) -> bool:
    """Whatever is not a weight just gathered: all of them at once would be the whole network.

    Nor what only arranges anew, widens or repeats: a weight is, on its way from being gathered to
    being used, and vectors are, on theirs to all tokens; and so are rows, taken and put together.
    """
    if primitive.name == "convert_element_type":
        return params["new_dtype"].itemsize < operands[0].dtype.itemsize
    if primitive.name == "concatenate":
        return params["dimension"] > 0
    return primitive.name not in ARRANGED


def _products(primitive, *operands, **params) -> bool:
    """Products with weights, and what attention gives: the output, or all that its kernel keeps."""
    if primitive.name == "name":
        return params["name"] == ATTENTION
    is_kernel = primitive.name.startswith(("dot_product_attention", "pallas_call"))
    return is_kernel or REMAT["dots"](primitive, *operands, **params)


# name -> what the backward pass keeps of a block: everything, matrix products and attention,
# products of weights alone, or only its input
REMAT: dict[str, Callable[..., bool]] = {
    "none": _all_but_gathered,
    "products": _products,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def over_blocks(body: Callable, carry: Any, inputs: Any, *, remat: str, unroll: int) -> Any:
    """The last carry of body(carry, input) -> (carry, None), block after block.

    inputs: a tree whose leaves lead with blocks. remat: a row of REMAT. unroll: blocks that are
    written out in the program, one after the other, for each turn of its loop; with all of them
    there is no loop, and what the backward pass keeps is no longer copied into arrays of all
    blocks and back, for a program that takes longer to compile.
    """
    # Without a loop between the passes a compiler would find again what was to be computed twice.
    apart = unroll > 1 and remat != "none"
    body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=apart)
    depth = jax.tree.leaves(inputs)[0].shape[0]
    return jax.lax.scan(body, carry, inputs, unroll=min(unroll, max(depth, 1)))[0]

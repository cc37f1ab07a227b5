"""Names and layouts of released heads (PyTorch), to and from the trees of our modules.

One rule for all heads: modules have the released names, a number joined to the word before it by
`_`; the name of a leaf tells its layout. Running moments of batch norm lie in `batch_stats`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dinojax.weights.report import LoadReport, check_values, match
from dinojax.weights.tensors import Tensor, Tensors, held


class Layout(NamedTuple):
    """How a leaf is called and laid out in a released file."""

    released: str  # "" = the name of the module alone
    to_ours: Callable[[np.ndarray], np.ndarray] = lambda x: x
    from_ours: Callable[[np.ndarray], np.ndarray] = lambda x: x


def _swap(x: np.ndarray) -> np.ndarray:
    """[out, in] or [out, in, H, W] to [in, out] or [H, W, in, out]."""
    return x.T if x.ndim == 2 else np.transpose(x, (2, 3, 1, 0))


def _swap_back(x: np.ndarray) -> np.ndarray:
    return x.T if x.ndim == 2 else np.transpose(x, (3, 2, 0, 1))


# Leaf of our tree -> how released files hold it. A leaf of another name stands there as it is here.
LEAVES = {
    "kernel": Layout("weight", _swap, _swap_back),
    "up_kernel": Layout(
        "weight",
        lambda x: np.transpose(x, (2, 3, 0, 1)),
        lambda x: np.transpose(x, (2, 3, 0, 1)),
    ),
    "in_proj_kernel": Layout("in_proj_weight", _swap, _swap_back),
    "scale": Layout("weight"),
    "embedding": Layout("weight"),
    "mean": Layout("running_mean"),
    "var": Layout("running_var"),
}
# Steps counted by batch norm: read by nothing, written as 0.
COUNTER = re.compile(r"(?:.+\.)?num_batches_tracked")


def released_name(path: tuple[str, ...]) -> str:
    """Name in a released file of a leaf of our tree, without its collection."""
    *modules, leaf = path
    dotted = [re.sub(r"_(\d+)(?=_|$)", r".\1", module) for module in modules]
    return ".".join([*dotted, LEAVES[leaf].released if leaf in LEAVES else leaf])


def paths(variables: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """{released name: path of the leaf, its collection first} of a head's variables."""
    return {released_name(path[1:]): path for path in flatten_dict(variables)}


def to_ours(tensors: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a head like `variables` (arrays or their shapes), from arrays by released name.

    Raises KeyError for a name that is missing; what else there is, is left aside.
    """
    found = {}
    for name, path in paths(variables).items():
        layout = LEAVES.get(path[-1], Layout(path[-1]))
        found[path] = layout.to_ours(np.asarray(tensors[name]))
    return unflatten_dict(found)


def from_ours(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by released name, with the counters of batch norm."""
    flat, found = flatten_dict(variables), {}
    for name, path in paths(variables).items():
        layout = LEAVES.get(path[-1], Layout(path[-1]))
        found[name] = layout.from_ours(np.asarray(flat[path]))
        if path[-1] == "var":
            counter = name.replace("running_var", "num_batches_tracked")
            found[counter] = np.zeros((), np.int64)
    return found


def expected(variables: Mapping[str, Any]) -> Tensors:
    """Released names, shapes and no values, from shapes of a head's variables."""
    blank = {
        path: np.broadcast_to(np.float32(0), leaf.shape)
        for path, leaf in flatten_dict(nn.meta.unbox(variables)).items()
    }
    return {
        name: held(array)
        for name, array in from_ours(unflatten_dict(blank)).items()
        if not COUNTER.fullmatch(name)
    }


def read(
    tensors: Mapping[str, Tensor], variables: Mapping[str, Any], *, source: str
) -> tuple[dict[str, Any], LoadReport]:
    """Float32 variables of a head, and the report of every tensor.

    variables: shapes, as `jax.eval_shape` of the head's init gives them. Raises ValueError, naming
    tensors, unless each of them is used and none is missing, in the shape that it must have.
    """
    variables = nn.meta.unbox(variables)
    wanted = expected(variables)
    own = {name: t for name, t in tensors.items() if not COUNTER.fullmatch(name)}
    unknown = [name for name in own if name not in wanted]
    known = {name: tensor for name, tensor in own.items() if name in wanted}
    report = match(wanted, known, unknown, source=source, format="released head")
    arrays = {name: tensor.read().astype(np.float32) for name, tensor in known.items()}
    check_values(arrays, source)
    return to_ours(arrays, variables), report

"""What a program costs, known before it runs: operations from its trace, bytes from its compiler.

FLOPs are those of matrix products and convolutions, 2 per multiply-add, over all devices. They
are counted on the traced program and not taken from the compiler, which counts the body of a
loop once however often it runs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(fn: Callable, *args: Any) -> int:
    """FLOPs of fn(*args), of which only shapes and types matter (jax.ShapeDtypeStruct will do).

    Loops count as often as they run, of the branches of a condition the dearest counts (of ways to
    compute the same on several platforms the cheapest), what remat computes twice counts twice,
    and what runs on every device counts for every device.
    Raises ValueError where the program hides the number: products in a loop of unknown length,
    or in a kernel of another library (trace with the plain variant instead).
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def compiled_memory(compiled: Any) -> dict[str, int]:
    """Bytes on one device of a compiled program (jax.jit(f).lower(...).compile()).

    argument, output, alias (outputs that reuse arguments), temp, and peak, the compiler's own
    highest point: what has to fit. On CPU peak says little: its compiler leaves temp out.
    """
    stats = compiled.memory_analysis()
    return {
        "argument": stats.argument_size_in_bytes,
        "output": stats.output_size_in_bytes,
        "alias": stats.alias_size_in_bytes,
        "temp": stats.temp_size_in_bytes,
        "peak": stats.peak_memory_in_bytes,
    }


def vit_flops(
    *,
    depth: int,
    width: int,
    ffn_width: int,
    ffn_matrices: int,
    num_patches: int,
    num_prefix: int = 5,
    patch_values: int = 16 * 16 * 3,
) -> int:
    """FLOPs of one forward pass of one image through a ViT, in closed form.

    ffn_matrices: 2 for an MLP, 3 for SwiGLU. num_prefix: cls and registers. patch_values: numbers
    in one patch of pixels. Linear layers, attention and patch embedding, as in the DINOv3 paper
    (arXiv:2508.10104); a training step costs three times its student's forward, plus the teacher.
    """
    tokens = num_patches + num_prefix
    linear = (4 * width**2 + ffn_matrices * width * ffn_width) * 2 * tokens
    attention = 4 * tokens**2 * width
    return depth * (linear + attention) + 2 * num_patches * patch_values * width


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name in COUNTERS:
        return COUNTERS[name](equation)
    if name.startswith("dot_product_attention"):
        raise ValueError(f"{name} hides its products: count with attention='xla' or 'plain'.")
    # jit, remat, custom derivatives, maps over devices: whatever else holds programs runs them.
    return _repeats(name, params) * sum(_count(inner) for inner in _programs(params))


def _repeats(name: str, params: dict) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # the program of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":  # the program of one block
        return math.prod(params["grid_mapping"].grid)
    return 1


def _programs(params: dict) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


def _dot_general(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    """Padding counts, zeros that a strided convolution's gradient inserts do not."""
    kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    num_outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    multiply_adds = math.prod(out) * math.prod(kernel) // num_outputs
    return 2 * multiply_adds // math.prod(equation.params["lhs_dilation"])


def _condition(equation: core.JaxprEqn) -> int:
    costs = [_count(branch.jaxpr) for branch in equation.params["branches"]]
    # Of ways to compute the same on one platform or another, the cheapest is what is meant.
    return min(costs) if equation.params.get("branches_platforms") else max(costs)


def _while(equation: core.JaxprEqn) -> int:
    if any(_count(program) for program in _programs(equation.params)):
        raise ValueError(
            "A while loop whose length is not known holds matrix products, so they cannot be "
            "counted: use lax.scan, or lax.fori_loop with Python integers as bounds."
        )
    return 0


def _shape(value: Any) -> tuple[int, ...]:
    return value.aval.shape


COUNTERS = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "cond": _condition,
    "while": _while,
}

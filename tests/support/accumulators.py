"""Sums whose running total has 16 bits, found in traced programs and in compiled ones.

A sum of bfloat16 has 8 significant bits: of n equal terms that are added one by one the total is
rounded to n / 256 of a term, so that it is a quarter of a term at 64 and at 256 it grows no more.
LIMIT is the first. What a 7B network adds in bfloat16 by intention is below it: 40 blocks to the
residual stream, 3 parts of qkv, two sets of crops.

Products of matrices and convolutions are given float32 totals by every compiler that we know and
round once, on their way out, unless a program asks for less; where a compiler makes a sum of a
product, the compiled program shows it.
"""

import collections
import math
import re
from typing import Any

from jax.extend import core

LIMIT = 64
NARROW = ("bfloat16", "float16")
# Primitive -> what it sums over, of an equation.
SUMS = {
    "reduce_sum": lambda e: _size(e.invars[0], e.params["axes"]),
    "reduce_prod": lambda e: _size(e.invars[0], e.params["axes"]),
    "cumsum": lambda e: _size(e.invars[0], [e.params["axis"]]),
    "cumprod": lambda e: _size(e.invars[0], [e.params["axis"]]),
    "reduce_window_sum": lambda e: math.prod(e.params["window_dimensions"]),
    "reduce": lambda e: _size(e.invars[0], e.params["dimensions"]),
    "scatter-add": lambda e: 1 if e.params["unique_indices"] else math.prod(_shape(e.invars[1])),
}
# Sums over devices, of which any number may be.
OVER_DEVICES = ("psum", "psum_invariant", "psum2", "reduce_scatter", "psum_scatter", "all_reduce")


def of_trace(jaxpr: core.Jaxpr, times: int = 1) -> list[str]:
    """One line per sum of more than LIMIT terms with a total of 16 bits, or over devices."""
    found: list[str] = []
    terms: dict[Any, int] = collections.defaultdict(lambda: 1)  # of sums of gradients
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        found += [line for inner in _inner(params) for line in of_trace(inner)]
        if not equation.outvars or _dtype(equation.outvars[0]) not in NARROW:
            if name != "scan":
                continue
        where = f"{name} {_dtype(equation.outvars[0]) if equation.outvars else ''}"
        where += f" of {[_shape(v) for v in equation.invars]} at {_place(equation)}"
        if name in SUMS and SUMS[name](equation) > LIMIT:
            found.append(f"{SUMS[name](equation)} terms: {where}")
        elif name in OVER_DEVICES:
            found.append(f"over devices: {where}")
        elif name in ("dot_general", "conv_general_dilated"):
            asked = getattr(params.get("precision"), "accumulation_type", None)
            if asked is not None and str(asked) in NARROW:
                found.append(f"asked for: {where}")
        elif name == "add_any":
            number = sum(terms[v] for v in equation.invars if isinstance(v, core.Var))
            terms[equation.outvars[0]] = number
            if number > LIMIT:
                found.append(f"{number} terms: {where}")
        elif name == "scan" and params["length"] > LIMIT:
            found += [f"{params['length']} turns: {line}" for line in _carried(equation)]
    return found


def _carried(equation) -> list[str]:
    """Totals of 16 bits that every turn of a loop adds to."""
    params, body = equation.params, equation.params["jaxpr"].jaxpr
    first, count = params["num_consts"], params["num_carry"]
    before, after = body.invars[first : first + count], body.outvars[:count]
    made = {v: e for e in body.eqns for v in e.outvars}
    found = []
    for old, new in zip(before, after, strict=True):
        adds = made.get(new)
        if adds is None or adds.primitive.name not in ("add", "add_any"):
            continue
        if _dtype(new) in NARROW and any(v is old for v in adds.invars):
            found.append(f"carry {_shape(new)} at {_place(adds)}")
    return found


def _inner(params: dict) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


def _shape(variable) -> tuple[int, ...]:
    return tuple(getattr(variable.aval, "shape", ()))


def _dtype(variable) -> str:
    return str(getattr(variable.aval, "dtype", ""))


def _size(variable, axes) -> int:
    return math.prod(_shape(variable)[axis] for axis in axes)


def _place(equation) -> str:
    return str(equation.source_info.name_stack)


COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
ARRAY = re.compile(r"([a-z]+\d+)\[([\d,]*)\]")
STAGE_LIMIT = 8  # compilers make a sum in stages, on CPU of 32 terms, which are found one by one
HLO_SUMS = ("reduce", "reduce-window", "select-and-scatter", "scatter")
HLO_OVER_DEVICES = ("all-reduce", "all-reduce-start", "reduce-scatter", "reduce-scatter-start")
ADDS = ("add", "multiply")
NARROW_HLO = ("bf16", "f16")


def of_compiled(text: str) -> list[str]:
    """The same of a compiled program's text."""
    lines = []
    made: dict[str, list] = collections.defaultdict(list)  # computation -> its (operation, shape)
    shapes: dict[tuple[str, str], str] = {}
    inside = ""
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            inside = header[1]
        elif result := RESULT.match(line):
            name, shape, operation, rest = result.groups()
            shapes[inside, name] = shape
            made[inside].append((operation, shape))
            lines.append((inside, shape, operation, rest, line.strip()))
    found = []
    for inside, shape, operation, rest, line in lines:
        if operation not in HLO_SUMS + HLO_OVER_DEVICES:
            continue
        called = re.search(r"(?:to_apply|scatter)=%?([\w.\-]+)", line)
        body = made[called[1]] if called else []
        if body and not any(operation in ADDS for operation, _ in body):
            continue  # a maximum, or a scatter that writes
        # On CPU the arrays of a sum may be float32, and its total is rounded after every term.
        if not any(
            kind in NARROW_HLO for _, s in [*body, ("", shape)] for kind, _ in ARRAY.findall(s)
        ):
            continue
        if operation in HLO_OVER_DEVICES:
            found.append(f"over devices: {line[:300]}")
        elif (terms := _terms(operation, shape, rest, inside, shapes, line)) > STAGE_LIMIT:
            found.append(f"{terms} terms: {line[:300]}")
    return found


def _terms(operation, result, rest, inside, shapes, line) -> int:
    """How many terms one total has."""
    if operation == "scatter":
        return 1 if "unique_indices=true" in line else STAGE_LIMIT + 1
    if window := re.search(r"window=\{size=([\dx]+)", line):
        return math.prod(int(n) for n in window[1].split("x"))
    operand = rest.split(",")[0].strip(" )")
    shape = operand if "[" in operand else shapes.get((inside, operand.lstrip("%")), "")
    if "[" in rest.split(" ")[0]:  # the operand's type is written beside its name
        shape = rest
    before, after = ARRAY.search(shape), ARRAY.search(result)
    if before is None or after is None:
        raise ValueError(f"The operand of a sum cannot be found: {line[:300]}")
    sizes = [math.prod(int(n) for n in dims.split(",") if n) for dims in (before[2], after[2])]
    return sizes[0] // max(sizes[1], 1)

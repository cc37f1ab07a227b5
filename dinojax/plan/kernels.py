"""What the kernels of a GPU program move and compute, read from its compiler's text.

A kernel is an instruction that runs by itself. Its bytes are those of its operands and results, of
a fusion only what it reads and writes of them: of an array that it slices or gathers from the part
taken, of one that it updates in place the part written. Loops count as often as they run.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from dinojax.plan.hlo import computations, known_trips

# What takes no kernel: names of arrays, and constants of the compiler.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id iota "
    "add-dependency opt-barrier".split()
)
ALIKE = ("bitcast", "reshape", "copy")  # the same values, inside of a fusion
SENT = ("all-", "reduce-scatter", "collective-", "send", "recv", "async-")
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
ARRAY = re.compile(r"\b([a-z]+(\d+)\w*|pred)\[([\d,]*)\]")
COMMENT = re.compile(r"/\*.*?\*/")
CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=\{([\d,]*)\}|ensions":\[([\d,"]*)\])')


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]
    bytes: float


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    out: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str  # its attributes
    is_root: bool

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.out)

    @property
    def op_name(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self, key: str) -> str:
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Equal runs of one instruction."""

    name: str
    # product | attention | library | sent | update | scatter | gather | fill | copy | other
    kind: str
    read: float  # bytes of one run
    written: float
    flops: float = 0.0  # of one run: products and attention, 2 per multiply-add
    dtypes: tuple[str, ...] = ()  # of the operands of a product
    times: int = 1
    op_name: str = ""  # as jax calls it, or the loop that it runs in

    @property
    def bytes(self) -> float:
        return self.read + self.written


Body = dict[str, Instruction]  # in the order of the text


def kernels(text: str) -> list[Kernel]:
    """Those of one run of a compiled program.

    Raises ValueError where a product runs in a loop of unknown length; other kernels of such a
    loop count once.
    """
    lines, entry = computations(text)
    program = {name: _parsed(body) for name, body in lines.items()}

    def walk(name: str, times: int, around: str) -> Iterator[Kernel]:
        for one in program.get(name, {}).values():
            op_name = one.op_name or around
            if one.op == "while":
                known = known_trips(f"condition=%{one.called('condition')}, {one.rest}", lines)
                inside = list(walk(one.called("body"), times * (known or 1), op_name))
                if known is None and any(kernel.flops for kernel in inside):
                    raise ValueError(f"A loop of unknown length has products: {one.name}")
                yield from inside
            elif one.op in ("conditional", "call"):
                for branch in re.findall(r"%([\w.\-]+)", one.rest):
                    yield from walk(branch, times, op_name)
            elif one.op not in FREE and not one.op.endswith("-done"):
                yield dataclasses.replace(_kernel(program, name, one), times=times, op_name=op_name)

    return list(walk(entry, 1, ""))


def _parsed(lines: list[str]) -> Body:
    found = [_instruction(match) for line in lines if (match := INSTRUCTION.match(line))]
    return {one.name: one for one in found}


def _instruction(match: re.Match) -> Instruction:
    """From `name = type op(operands), attributes`; a type in brackets is one of several arrays."""
    root, name, text = match.groups()
    text = COMMENT.sub("", text)
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    stop = _closing(text, start)
    return Instruction(
        name=name,
        op=text[end:start].strip(),
        out=_arrays(text[:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", text[start:stop])) or (text[start + 1 : stop],),
        rest=text[stop + 1 :],
        is_root=bool(root),
    )


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"No end of brackets: {text[:200]}")


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, bits, sides in ARRAY.findall(text):
        shape = tuple(int(side) for side in sides.split(",") if side)
        found.append(Array(dtype, shape, int(bits or 8) / 8 * math.prod(shape)))
    return tuple(found)


def _kernel(program: dict[str, Body], name: str, one: Instruction) -> Kernel:
    body = program[name]
    inputs = [body[operand] for operand in one.operands if operand in body]
    read, written = sum(x.bytes for x in inputs), one.bytes
    if one.op.startswith(SENT) or one.op.endswith("-start"):
        return Kernel(one.name, "sent", 0.0, 0.0)
    if one.op == "fusion":
        return _fusion(program[one.called("calls")], one.name)
    if one.op == "dot" or "cublas" in one.target or "fmha" in one.target:
        written -= sum(x.bytes for x in one.out if _is_workspace(x))
        is_dot = "fmha" not in one.target
        flops = _dot_flops(body, one) if is_dot else _attention_flops(one, inputs)
        kind = "product" if is_dot else "attention"
        return Kernel(one.name, kind, read, written, flops, _dtypes(body, one))
    if one.op == "dynamic-update-slice":
        return Kernel(one.name, "update", inputs[1].bytes, inputs[1].bytes)
    kinds = {"custom-call": "library", "copy": "copy", "transpose": "copy", "broadcast": "fill"}
    return Kernel(one.name, kinds.get(one.op, "other"), read, written)


def _fusion(inner: Body, name: str) -> Kernel:
    dots = [one for one in inner.values() if one.op == "dot"]
    read, flops = _fusion_read(inner), sum(_dot_flops(inner, one) for one in dots)
    dtypes = _dtypes(inner, dots[0]) if dots else ()
    return Kernel(name, _fusion_kind(inner, read), read, _fusion_written(inner), flops, dtypes)


def _is_workspace(array: Array) -> bool:
    return array.dtype in ("s8", "u8") and len(array.shape) == 1


def _dtypes(body: Body, one: Instruction) -> tuple[str, ...]:
    """Of the operands; tf32 is float32 whose product need not have all digits."""
    found = (body[operand].out[0].dtype for operand in one.operands[:2])
    is_exact = "HIGHEST" in one.rest.upper()
    return tuple("tf32" if dtype == "f32" and not is_exact else dtype for dtype in found)


def _dot_flops(body: Body, one: Instruction) -> float:
    match = CONTRACTED.search(one.rest)
    if match is None:
        raise ValueError(f"A product whose contracted axes cannot be read: {one.name} {one.rest}")
    axes = [int(axis) for axis in re.findall(r"\d+", match[1] or match[2] or "")]
    shape = body[one.operands[0]].out[0].shape
    return 2.0 * math.prod(one.out[0].shape) * math.prod(shape[axis] for axis in axes)


def _attention_flops(one: Instruction, inputs: list[Instruction]) -> float:
    """Two products of N x M x E a head forward, five backward (arXiv:2205.14135, appendix B)."""
    batch, num_queries, heads, width = inputs[0].out[0].shape
    num_keys = inputs[1].out[0].shape[1]
    products = 5 if "Backward" in one.target else 2
    return 2.0 * products * batch * heads * num_queries * num_keys * width


def _fusion_kind(inner: Body, read: float) -> str:
    ops = {one.op for one in inner.values()}
    for op, kind in {
        "dot": "product",
        "scatter": "scatter",
        "dynamic-update-slice": "update",
    }.items():
        if op in ops:
            return kind
    if "gather" in ops:
        return "gather"
    moves = {
        "parameter",
        "constant",
        "tuple",
        "bitcast",
        "reshape",
        "copy",
        "transpose",
        "convert",
    }
    if "broadcast" in ops and read <= 64:
        return "fill"
    return "copy" if ops <= moves | {"slice", "dynamic-slice"} else "other"


def _fusion_read(inner: Body) -> float:
    users = collections.defaultdict(list)
    for one in inner.values():
        for operand in one.operands:
            users[operand].append(one)
    return sum(_read_of(inner, users, one) for one in inner.values() if one.op == "parameter")


def _read_of(inner: Body, users: dict, parameter: Instruction) -> float:
    """Bytes of an operand that a fusion reads: all, or the parts that it takes."""
    parts, names, seen = 0.0, [parameter.name], set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        for user in users[name]:
            is_first = user.operands[0] == name
            if user.op in ("bitcast", "reshape"):
                names.append(user.name)
            elif user.op in ("slice", "dynamic-slice", "gather") and is_first:
                parts += user.bytes
            elif user.op == "dynamic-update-slice" and is_first:
                pass  # written in place, nothing of it is read
            elif user.op == "scatter" and is_first:
                parts += inner[user.operands[2]].bytes
            else:
                return parameter.bytes
    return min(parts, parameter.bytes)


def _fusion_written(inner: Body) -> float:
    root = next(one for one in inner.values() if one.is_root)
    results = [inner[name] for name in root.operands] if root.op == "tuple" else [root]
    return sum(_written_of(inner, one) for one in results)


def _written_of(inner: Body, one: Instruction) -> float:
    updates = {
        "dynamic-update-slice": 1,
        "scatter": 2,
    }  # number of the operand with new values
    origin = one
    while origin.op in ALIKE and origin.operands[0] in inner:
        origin = inner[origin.operands[0]]
    return inner[origin.operands[updates[origin.op]]].bytes if origin.op in updates else one.bytes

"""What a compiled program sends between devices, read from its text.

Loops count as often as they run. A collective that the compiler spreads over several fusions is one
chain and counts once; channels say nothing, as one may serve many. Bytes are those that leave one
device, for the usual ring algorithms.
"""

import collections
import dataclasses
import math
import re

import numpy as np

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|send|recv"
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
COLLECTIVE = re.compile(rf"= (.*?) (ragged-)?({KINDS})(-start)?\((.*)")
CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations"
    r"|true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)"
)
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
ARRAY = re.compile(r"\b([a-z]+\d+|pred|f8e\w+)\[([\d,]*)\]")
BOUND = re.compile(r"= [su]\d+\[\][^ ]* constant\((\d+)\)")
IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # numbers of devices
BITS = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Equal collectives of one program. wire: bytes out of one device in one step."""

    kind: str
    group: int  # devices that take part
    near: bool  # whether they are neighbours in the order of devices
    overlapped: bool  # whether the program goes on meanwhile
    count: int
    wire: float
    largest: float  # bytes of the largest array that comes together on one device


def collectives(text: str) -> list[Collective]:
    """Those of a compiled program's text, by bytes.

    Raises ValueError if one is never called, or called in a loop of unknown length.
    """
    program, entry = computations(text)
    reached = _reach(program, entry)
    found: dict = {}
    for name, lines in program.items():
        for number, line in enumerate(lines):
            match = COLLECTIVE.search(line)
            if not match:
                continue
            times, callers = reached.get(name, (0, ""))
            if not times:
                raise ValueError(f"A collective in {name} is never called: {line.strip()[:200]}")
            one = _one(match, line, f"{callers} {name}")
            key = _chain(line) or (name, number)
            if key in found:
                before, most = found[key]
                one = dataclasses.replace(one, overlapped=one.overlapped or before.overlapped)
                times = max(times, most)
            found[key] = (one, times)
    return _merged(found.values())


def _merged(found) -> list[Collective]:
    alike = collections.defaultdict(list)
    for one, times in found:
        alike[one.kind, one.group, one.near, one.overlapped].append((one, times))
    merged = [
        Collective(
            *key,
            count=sum(times for _, times in same),
            wire=sum(one.wire * times for one, times in same),
            largest=max(one.largest for one, _ in same),
        )
        for key, same in alike.items()
    ]
    return sorted(merged, key=lambda one: -one.wire)


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(Name -> the lines of each computation of a program, the name of that which runs first)."""
    program: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = program.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return program, entry


def _reach(program, entry) -> dict[str, tuple[int, str]]:
    """How often a computation runs, and the names and operations it is called through."""
    reached: dict[str, tuple[int, str]] = {}

    def visit(name: str, times: int, callers: str) -> None:
        before, seen = reached.get(name, (0, ""))
        # Fusions that start and end one collective call the same one.
        number = max(before, times) if "async-collective" in callers else before + times
        reached[name] = (number, f"{seen} {callers}" if callers not in seen else seen)
        for line in program.get(name, ()):
            called = CALLS.findall(line)
            if not called:
                continue
            repeat = _trips(line, program) if " while(" in line else 1
            how = _caller(line)
            for inner in re.findall(r"%([\w.\-]+)", " ".join(called)):
                visit(inner, times * repeat, f"{callers} {how}".strip())

    visit(entry, 1, "")
    return reached


def _chain(line: str) -> tuple | None:
    """What the parts of one collective have in common, on TPUs."""
    chain = re.search(r'chain_id="?(\d+)', line)
    channel = re.search(r"channel_id=(\d+)", line)
    return (chain[1], channel[1] if channel else None) if chain else None


def known_trips(line: str, program: dict[str, list[str]]) -> int | None:
    """How often a loop runs, None where neither the compiler nor its condition tells."""
    if stated := TRIPS.search(line):
        return int(stated[1])
    called = re.search(r"condition=%([\w.\-]+)", line)
    condition = program.get(called[1], []) if called else []
    bounds = [bound for text in condition for bound in BOUND.findall(text)]
    return int(bounds[0]) if len(bounds) == 1 else None


def _trips(line: str, program: dict[str, list[str]]) -> int:
    """How often a loop runs: as the compiler states it, or the bound its condition compares with.

    Raises ValueError where neither tells and something is sent in the loop.
    """
    if (known := known_trips(line, program)) is not None:
        return known
    body = re.search(r"body=%([\w.\-]+)", line)
    inside = _reach(program, body[1]) if body else {}
    if any(COLLECTIVE.search(text) for name in inside for text in program.get(name, ())):
        raise ValueError(f"A loop of unknown length sends something: {line.strip()[:200]}")
    return 1


def _caller(line: str) -> str:
    """The parts of a calling instruction that say how its collectives run."""
    name = line.strip().removeprefix("ROOT ").split(" = ")[0]
    words = [word for word in ("reduce-scatter", "async-collective") if word in name]
    words += [word for word in ("async-start", "call-start") if f" {word}(" in line]
    return " ".join(words)


def _one(match: re.Match, line: str, callers: str) -> Collective:
    result, _, kind, start, _ = match.groups()
    group, near = _group(line)
    size = _bytes(result)
    if kind == "all-reduce" and "reduce-scatter" in callers:
        kind, size = "reduce-scatter", size / group  # a fusion that keeps its own part
    if start:  # its result holds the operand too
        size *= {"all-gather": group / (group + 1), "reduce-scatter": 1 / (group + 1)}.get(kind, 1)
        size /= 2 if kind in ("collective-permute", "all-to-all") else 1
    share = (group - 1) / group
    wire = {
        "all-gather": size * share,
        "reduce-scatter": size * (group - 1),
        "all-reduce": 2 * size * share,
        "all-to-all": size * share,
    }.get(kind, size)
    whole = size * group if kind == "reduce-scatter" else size
    overlapped = bool(start) or any(word in callers for word in ("async", "call-start"))
    return Collective(kind, group, near, overlapped, 1, wire, whole)


def _bytes(shapes: str) -> float:
    total = 0.0
    for dtype, sizes in ARRAY.findall(shapes):
        bits = 8 if dtype == "pred" else int(BITS.search(dtype)[0])  # type: ignore[index]
        total += bits / 8 * math.prod(int(size) for size in sizes.split(",") if size)
    return total


def _group(line: str) -> tuple[int, bool]:
    """(devices of a group, whether they are neighbours)."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
        return 2, abs(int(pairs[1]) - int(pairs[2])) == 1
    if "replica_groups=" not in line:  # one to another
        return 2, False
    members = _members(line)
    return len(members), bool(np.all(np.diff(np.sort(members)) == 1))


def _members(line: str) -> np.ndarray:
    """The first group of devices, from any of the three ways to write groups.

    Raises ValueError for any other.
    """
    if lists := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return np.array([int(n) for n in lists[1].split(",")])
    if iota := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={IOTA}", line):
        return _iota(*iota.group(3, 4)).reshape(int(iota[1]), int(iota[2]))[0]
    if mesh := re.search(
        rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({IOTA}\))? \{{([^}}]*)\}}", line
    ):
        axes = re.findall(r"'([^']+)'=(\d+)", mesh[1])
        names, sizes = [name for name, _ in axes], [int(size) for _, size in axes]
        chosen = [names.index(name) for name in re.findall(r"'([^']+)'", mesh[4])]
        others = [axis for axis in range(len(names)) if axis not in chosen]
        ids = _iota(mesh[2] or str(math.prod(sizes)), mesh[3]).reshape(sizes)
        ids = ids.transpose(others + chosen)
        return ids.reshape(-1, math.prod(sizes[axis] for axis in chosen))[0]
    raise ValueError(f"Groups of devices that cannot be read: {line.strip()[:300]}")


def _iota(sizes: str, order: str | None) -> np.ndarray:
    """Numbers of devices as `[4,4]T(1,0)` writes them."""
    grid = [int(n) for n in sizes.split(",")]
    axes = [int(n) for n in order.split(",")] if order else range(len(grid))
    return np.arange(math.prod(grid)).reshape(grid).transpose(axes).reshape(-1)

"""How JSON, YAML and text are mutated, and how a command is watched while it meets them."""

import contextlib
import copy
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dinojax.cli import main
from tests.support import peak_memory

# What a command may take for any input: processor time, time, and memory.
SECONDS, WAITED, BYTES = 20.0, 120.0, 2**30
DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]
# What may stand in place of any value.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 64, 1.5, -0.0, 1e308, -1e308, 10**12, -(10**12), 10**400),
    *("", "x", "64", "3.5", "true", "../../x", "a/b", "\0", "é\n", "x" * 3000, "None", "nan"),
    *([], {}, [1], ["a"], [[]], {"a": 1}, {"": None}, [None, None], DEEP, list(range(300))),
    *(float("nan"), float("inf"), {"stage": 3}, {"step": "3"}),
)
# What may stand in place of a whole file.
WHOLE = (
    *(b"", b"\n", b"[]", b"{}", b"3", b'"text"', b"null", b"true", b"{", b"[[[", b"\xff\xfe\x00"),
    *(b"\xef\xbb\xbf{}", b"not json", b'{"a": 1}{"b": 2}', b"NaN", b"1" + b"0" * 5000),
    *(b"[" * 100_000, b'{"a":' * 3000, b"\0" * 100, b"version https://git-lfs\n"),
)


class TooLong(BaseException):
    """A command that does not end within SECONDS of work, or WAITED."""


def mutated(value: Any, rng) -> Any:
    """A JSON value with one node changed, removed, renamed or added."""
    value = copy.deepcopy(value)
    places = list(_places(value)) if isinstance(value, (dict, list)) else []
    if not places or rng.random() < 0.03:
        return _any(rng)
    holder, name = places[rng.integers(len(places))]
    kind = rng.integers(0, 8)
    if kind == 0:
        del holder[name]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{name}x"] = holder.pop(name)
    elif kind == 2:
        holder[name] = str(holder[name])
    elif kind == 3:
        holder[name] = [holder[name]]
    else:
        holder[name] = _any(rng)
    return value


def _any(rng) -> Any:
    return copy.deepcopy(VALUES[rng.integers(len(VALUES))])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    names = list(value) if isinstance(value, dict) else range(len(value))
    for name in names:
        yield value, name
        if isinstance(value[name], (dict, list)):
            yield from _places(value[name])


def mutated_bytes(data: bytes, rng) -> bytes:
    """Text of a file that is cut, or has a few bytes changed, or is another one."""
    kind = rng.integers(0, 4)
    if kind == 0 or not data:
        return WHOLE[rng.integers(len(WHOLE))]
    if kind == 1:
        return data[: rng.integers(len(data))]
    changed = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 6)):
        changed[place] = rng.integers(256)
    return bytes(changed)


def mutated_json(data: bytes, rng) -> bytes:
    """The same of a JSON file, four times of five still one."""
    if rng.random() < 0.2:
        return mutated_bytes(data, rng)
    return json.dumps(mutated(json.loads(data), rng)).encode()


def mutated_lines(data: bytes, rng) -> bytes:
    """The same of a file of JSON lines: one of them, or the order of all."""
    if rng.random() < 0.1:
        return mutated_bytes(data, rng)
    lines = data.splitlines(keepends=True)
    place = int(rng.integers(len(lines)))
    kind = rng.integers(0, 6)
    if kind == 0:
        lines.insert(place, b"\n")
    elif kind == 1:
        lines.insert(place, lines[place])
    elif kind == 2:
        lines[place] = lines[place].strip()
    else:
        lines[place] = mutated_json(lines[place], rng).replace(b"\n", b" ") + b"\n"
    return b"".join(lines)


def in_the_way(path: Path, rng) -> None:
    """Something that is no file, or no readable one, in the place of a file."""
    path.unlink()
    kind = rng.integers(0, 4)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.symlink_to(path.name)  # to itself
    elif kind == 2:
        os.mkfifo(path)
    # else nothing is there


def watched(words: list[str], fine: Callable[[str], bool], *, within=contextlib.nullcontext):
    """(exit code, faults) of a command. fine: whether what it says, when it refuses, will do."""
    told, held, code = io.StringIO(), peak_memory.begin(), main.FINISHED
    for alarm, timer, seconds in TIMERS:
        signal.signal(alarm, _end)
        signal.setitimer(timer, seconds)
    try:
        with within(), contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            code = main.main(words)
    except TooLong:
        return None, [f"{words[0]}: more than {SECONDS} s of work, or {WAITED} s"]
    except BaseException as error:  # an uncaught one is what is looked for
        return None, [f"{words[0]}: uncaught {type(error).__name__}: {str(error)[:300]}"]
    finally:
        for _, timer, _ in TIMERS:
            signal.setitimer(timer, 0)
    said, faults = told.getvalue(), []
    if code not in (main.FINISHED, main.REFUSED) or "Traceback" in said:
        faults.append(f"{words[0]}: exit code {code}: {said[-500:]}")
    elif code == main.REFUSED and not fine(said):
        faults.append(f"{words[0]}: refused without the file or key: {said[-500:]}")
    if (grown := peak_memory.grown(held)) > BYTES:
        faults.append(f"{words[0]}: {grown / 2**30:.1f} GiB")
    return code, faults


TIMERS = (
    (signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
    (signal.SIGALRM, signal.ITIMER_REAL, WAITED),
)


def _end(*_):
    raise TooLong

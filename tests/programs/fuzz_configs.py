"""Mutated configs through every check that `dinojax train` makes before it uses a device."""

import contextlib
import io
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np

from dinojax.cli import main
from dinojax.config import rules
from dinojax.config.recipe import flat
from dinojax.configs import base
from dinojax.data import sources, tiles
from dinojax.sharding import mesh
from dinojax.train import loop

DEFAULTS = flat(base.get_config())
LARGEST = float(np.finfo(np.float32).max)
# Text that --set may be given in place of anything.
TEXTS = (
    *("", " ", "nan", "-inf", "inf", "1e999", "-1", "0", "-0.0", "1e-300", "1e39", "None", "[]"),
    *("true", "False", "()", "(1,)", "(1, 2)", "(nan, 1)", "'3'", '"tiny"', "{}", "{1: 2}", "1j"),
    *("3.0", "1e3", "0x10", "1_0", "007", "--3", "1 2", "..", "../x", "a/b", "/", "~", "\0", "\n"),
    *(
        "2147483648",
        "9223372036854775808",
        "1" + "0" * 400,
        "1" + "0" * 5000,
        "(" * 300,
        "-" * 9999,
    ),
    *("é", "x" * 5000, "lambda: 0", "__import__('os')", "[1, [2, [3]]]", "b'1'", "=", "a=b", "1;2"),
)
# What a recipe may assign, as Python.
VALUES = (
    "None",
    "-1",
    "10**12",
    "float('nan')",
    "float('inf')",
    "'1'",
    "[1, 2]",
    "(1, 2, 3)",
    "{}",
)
VALUES += (
    "True",
    "1e30",
    "-0.5",
    "10**400",
    "b'x'",
    "object()",
    "1j",
    "(0.0, -1.0)",
    "range(3)",
    "0",
)


class Mutant(NamedTuple):
    """Settings for the command line, lines for the recipe, and the keys that were changed."""

    settings: tuple[str, ...]
    lines: tuple[str, ...]
    keys: tuple[str, ...]


def mutant(rng) -> Mutant:
    """One or two keys of the tiny recipe with another value, or a key that is none."""
    settings, lines, keys = [], [], []
    for key in rng.choice(list(DEFAULTS), int(rng.integers(1, 3)), replace=False).tolist():
        kind = rng.integers(0, 10)
        if kind == 0:
            key = _misspelt(key, rng)
            settings.append(f"{key}=1")
        elif kind <= 2:
            settings.append(f"{key}={TEXTS[rng.integers(len(TEXTS))]}")
        elif kind == 3:
            lines.append(f"c.{key} = {VALUES[rng.integers(len(VALUES))]}")
        elif kind == 4 and key in rules.CHOICES:
            settings.append(f"{key}={rng.choice([str(c) for c in rules.CHOICES[key]])}")
        else:
            settings.append(f"{key}={_shifted(DEFAULTS[key], rng)}")
        keys.append(key)
    return Mutant(tuple(settings), tuple(lines), tuple(keys))


def _misspelt(key: str, rng) -> str:
    place = int(rng.integers(0, len(key)))
    return [key[:place] + key[place + 1 :], key + ".x", key.upper(), key.split(".")[0] + ".", ""][
        rng.integers(5)
    ]


def _shifted(value: Any, rng) -> str:
    """A number near or far from the declared one, as text; other values upside down."""
    if isinstance(value, tuple):
        return f"({', '.join(_shifted(element, rng) for element in value)})"
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, str):
        return value[::-1] + "x"
    number = 1 if value is None else value
    factor = rng.choice([-1, 0, 0.5, 0.9, 1, 2, 3, 1e6, 1e12])
    return str(int(number * factor)) if isinstance(number, int) else repr(float(number * factor))


@contextlib.contextmanager
def checks_only(found: list) -> Iterator[None]:
    """`dinojax train` ends where it would begin to compute, and gives its run to `found`."""
    cut = {}

    def small(*, path="", channels, split="train", key="data.path", options=None):
        if (channels, split, path) not in cut:
            cut[channels, split, path] = tiles.tiles(
                path=path, channels=channels, split=split, key=key
            )
        return cut[channels, split, path]

    @contextlib.contextmanager
    def nothing(run, interrupt, accept, **_):
        found.append(run)
        yield SimpleNamespace(state=None), ()

    before = loop._at_work, dict(tiles.SPLITS), sources.SOURCES["tiles"]
    loop._at_work = nothing
    tiles.SPLITS.update(dict.fromkeys(tiles.SPLITS, 32))
    sources.SOURCES["tiles"] = small
    try:
        yield
    finally:
        loop._at_work, _, sources.SOURCES["tiles"] = before
        tiles.SPLITS.update(before[1])


def faults_of(mutant: Mutant, folder: Path, *, trace: bool) -> tuple[str, list[str]]:
    """("accepted" or "refused", what is wrong with how that came about)."""
    recipe = folder / "mutant.py"
    body = "".join(f"    {line}\n" for line in mutant.lines)
    recipe.write_text(
        "from dinojax.configs import tiny\n\n\ndef get_config():\n"
        f"    c = tiny.get_config()\n{body}    return c\n"
    )
    args = ["train", "--config", str(recipe), "--run", str(folder / "run")]
    plain = [] if "mesh.devices" in mutant.keys else ["mesh.devices=1"]
    args += [word for setting in [*mutant.settings, *plain] for word in ("--set", setting)]
    told, found = io.StringIO(), []
    with checks_only(found), contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        try:
            code = main.main(args)
        except BaseException as error:  # an uncaught one is what is looked for
            return "refused", [f"uncaught {type(error).__name__}: {str(error)[:300]}"]
    said = told.getvalue()
    if code == main.FINISHED:
        return "accepted", illegal(found[0], trace=trace)
    wrong = []
    if code != main.REFUSED or "Traceback" in said:
        wrong.append(f"exit code {code}: {said[-600:]}")
    # Where one key of two is at fault the message names that one.
    if not any(key.strip(". ").split(".")[-1] in said for key in mutant.keys):
        wrong.append(f"refused without the name of the key: {said[-600:]}")
    return "refused", wrong


def illegal(run: loop.Run, *, trace: bool) -> list[str]:
    """What is wrong with a run that was accepted; nothing here uses a device."""
    wrong = []
    for key, value in run.config.values().items():
        least = min(0, rules.LIMITS.get(key, (0,))[0])  # what may be negative says so
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not least <= number <= LARGEST:
                wrong.append(f"{key}={value!r} was accepted")
            if type(number) is int and number >= 2**32:
                wrong.append(f"{key}={value!r} was accepted, beyond 32 bits")
        default = DEFAULTS[key]
        kind = rules.OPTIONAL[key] if key in rules.OPTIONAL else type(default)
        if type(value) is not kind and not (value is None and key in rules.OPTIONAL):
            wrong.append(f"{key}={value!r} was accepted, not {kind.__name__}")
    for step in (0, run.num_steps // 2, run.num_steps - 1):
        bad = [k for k, v in run.program.now(step).items() if not math.isfinite(v)]
        wrong += [f"schedule {name} is not finite at step {step}" for name in bad]
    if trace:
        with mesh.use(run.program.layout), jax.default_matmul_precision("default"):
            try:
                run.program.lower()
            except Exception as error:
                wrong.append(f"accepted, but does not trace: {type(error).__name__}: {error}"[:600])
    return wrong


def fuzz(seed: int, count: int, *, num_traced: int = 0, progress=lambda done, faults: None) -> dict:
    """{"accepted", "refused", "traced": numbers, "faults": list of (settings, lines, what)}."""
    rng, result = np.random.default_rng(seed), {"accepted": 0, "refused": 0, "traced": 0}
    faults = []
    for number in range(count):
        one = mutant(rng)
        folder = Path(tempfile.mkdtemp())
        trace = result["traced"] < num_traced
        try:
            verdict, wrong = faults_of(one, folder, trace=trace)
        finally:
            shutil.rmtree(folder)
        result[verdict] += 1
        result["traced"] += trace and verdict == "accepted"
        said = json.dumps([setting[:80] for setting in one.settings] + list(one.lines))
        faults += [f"{said}: {line}" for line in wrong]
        progress(number + 1, faults)
    return {**result, "faults": faults}

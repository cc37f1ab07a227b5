"""A recorded file, and the bounds within which our numbers must agree with it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

FLOAT32_RELATIVE = 2e-5  # of the largest magnitude of a quantity
FLOAT64_RELATIVE = 1e-9
TINY = 1e-30


class Check(NamedTuple):
    """One quantity: ours against the recorded one, within an absolute bound (or one each)."""

    quantity: str
    ours: Any
    recorded: Any
    bound: Any


class Skip(NamedTuple):
    """A recorded quantity that is left out, and why. Printed, never counted as agreement."""

    quantity: str
    reason: str


class Record:
    """Arrays of an .npz or entries of a .json, by name, with the metadata of the file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.entries: dict[str, Any]
        if self.path.suffix == ".json":
            self.entries = json.loads(self.path.read_text())
            self.meta = self.entries.pop("__meta__", {})
        else:
            with np.load(self.path) as arrays:
                self.entries = {name: arrays[name] for name in arrays.files}
            self.meta = json.loads(str(self.entries.pop("__meta__", "{}")))

    def __getitem__(self, name: str) -> Any:
        return self.entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def under(self, prefix: str) -> list[str]:
        """Names below a prefix, without it, in the order of the file."""
        return [name.removeprefix(prefix) for name in self.entries if name.startswith(prefix)]

    def bound(self, recorded: np.ndarray, own_error: float = 0.0) -> float:
        """Largest difference allowed: none for integers, else as its number format deserves.

        float32: 3 times the error of the reference's own float32 run, where the file states it
        for its outputs or holds this quantity in both precisions (`own_error`), and never more
        than 2e-5 of the largest magnitude. float64: 1e-9 of it.
        """
        recorded = np.asarray(recorded)
        if not np.issubdtype(recorded.dtype, np.floating):
            return 0.0
        scale = max(float(np.max(np.abs(recorded), initial=0.0)), TINY)
        if recorded.dtype == np.float64:
            return FLOAT64_RELATIVE * scale
        stated = max(self.meta.get("f32_vs_f64_maxabs", np.inf), own_error)
        return min(3.0 * stated, FLOAT32_RELATIVE * scale)

    def check(self, name: str, ours: Any, label: str | None = None) -> Check:
        recorded = self.entries[name]
        prefix, slash, rest = name.partition("/")
        wide = self.entries[f"{prefix}64/{rest}"] if f"{prefix}64/{rest}" in self else recorded
        own_error = float(np.max(np.abs(wide - recorded), initial=0.0)) if slash else 0.0
        return Check(label or name, np.asarray(ours), recorded, self.bound(recorded, own_error))


def at_both_precisions(
    record: Record, name: str, function: Callable[..., dict[str, Any]], *inputs: np.ndarray
) -> Iterator[Check]:
    """Runs `function` in float32 and float64 and checks what it returns where it is recorded.

    It returns {prefix: array}; `prefix/name` is the float32 record, `prefix64/name` (or
    `prefix_64/name`) the float64 one, which comes from the same inputs, widened.
    """
    for dtype, marks in ((np.float32, ("",)), (np.float64, ("64", "_64"))):
        if not any(f"{p}{mark}/{name}" in record for p in PREFIXES for mark in marks):
            continue
        with jax.enable_x64(dtype is np.float64):
            outputs = function(*(_cast(x, dtype) for x in inputs))
            outputs = {prefix: np.asarray(value) for prefix, value in outputs.items()}
        for prefix, ours in outputs.items():
            for key in (f"{prefix}{mark}/{name}" for mark in marks):
                if key in record:
                    yield record.check(key, ours)


PREFIXES = ("out", "grad", "out2")


def _cast(array: np.ndarray, dtype) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array


def with_gradient(loss: Callable[..., jax.Array]) -> Callable[..., dict[str, jax.Array]]:
    """{"out": value, "grad": gradient of the first argument}."""
    gradient = jax.value_and_grad(loss)

    def run(*inputs):
        value, grad = gradient(*(jax.numpy.asarray(x) for x in inputs))
        return {"out": value, "grad": grad}

    return run

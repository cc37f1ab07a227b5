"""Counted, strict loading: what came from the file, and every reason why it may not be used."""

import dataclasses
import fnmatch
import re
from collections.abc import Sequence

import numpy as np

from dinojax.weights.tensors import Tensors, is_floating

MIN_SHARE = 0.999  # of the elements of a backbone that must come from the file


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a file. Names are the reference's, unexpected ones the file's.

    matched: tensors used. filled: parameters that are not in the file and start from `init`, by
    permission of the format or of a named pattern. ignored: tensors of the file left aside by
    permission. cast: tensors whose dtype was changed to float32. share: of the elements of the
    backbone that came from the file, leaving out what its format never holds. notes: what was
    assumed.
    """

    format: str
    matched: int
    filled: tuple[str, ...]
    ignored: tuple[str, ...]
    cast: int
    elements: int
    share: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"format {self.format}: {self.matched} tensors, {self.elements:,} elements "
            f"({100 * self.share:.3f} % of the backbone), {self.cast} cast to float32"
        ]
        if self.filled:
            lines.append(f"not in the file, as initialised: {', '.join(self.filled)}")
        if self.ignored:
            lines.append(f"left aside: {', '.join(self.ignored)}")
        return "\n".join([*lines, *self.notes])


def match(
    wanted: Tensors,
    found: Tensors,
    unknown: Sequence[str],
    *,
    source: str,
    format: str,
    allow: Sequence[str] = (),
    optional: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> LoadReport:
    """Compares what a backbone needs with what a file has; shapes and names only.

    allow: patterns (with * and ?) of names that may be missing or unexpected. optional: names the
    format never holds. Raises ValueError that lists everything wrong at once.
    """
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted] + list(unknown)
    filled = [name for name in missing if name in optional or _allowed(name, allow)]
    ignored = [name for name in surplus if _allowed(name, allow)]
    shapes = [
        f"{name} is {found[name].shape}, not {tensor.shape}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} is {found[name].dtype}"
        for name in wanted
        if name in found and not is_floating(found[name].dtype)
    ]
    faults = {
        "missing": [name for name in missing if name not in filled],
        "unexpected": [name for name in surplus if name not in ignored],
        "of another shape": shapes,
        "of no floating-point numbers": kinds,
    }
    problems = [f"{len(names)} {what}: {_some(names)}" for what, names in faults.items() if names]
    used = [name for name in wanted if name in found]
    elements = sum(_size(found[name].shape) for name in used)
    held = [tensor for name, tensor in wanted.items() if name in found or name not in optional]
    share = elements / sum(_size(tensor.shape) for tensor in held)
    if not problems and share < MIN_SHARE:
        problems = [f"only {100 * share:.2f} % of the elements are in the file"]
    if problems:
        raise ValueError(
            f"{source} does not fit (read as format {format}, {len(used)} of {len(wanted)} "
            f"tensors matched):\n  " + "\n  ".join([*problems, *_hints(missing, surplus)])
        )
    return LoadReport(
        format=format,
        matched=len(used),
        filled=tuple(filled),
        ignored=tuple(ignored),
        cast=sum(found[name].dtype != np.float32 for name in used),
        elements=elements,
        share=share,
        notes=tuple(notes),
    )


def check_values(tensors: dict[str, np.ndarray], source: str) -> None:
    """Raise ValueError for weight matrices that are all zero and for values that are no numbers."""
    zero = [n for n, x in tensors.items() if n.endswith("weight") and x.ndim > 1 and not x.any()]
    if zero:
        raise ValueError(
            f"{source}: {len(zero)} weights hold nothing but zeros ({_some(zero)}): a file that "
            "was never filled."
        )
    broken = [name for name, x in tensors.items() if not np.isfinite(x).all()]
    if broken:
        raise ValueError(f"{source}: {len(broken)} tensors hold NaN or infinity ({_some(broken)}).")


def _allowed(name: str, allow: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in allow)


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _some(names: Sequence[str], count: int = 5) -> str:
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest


def _hints(missing: Sequence[str], surplus: Sequence[str]) -> list[str]:
    """What the pattern of missing and unexpected names looks like."""
    fused = any(name.endswith("qkv.weight") for name in missing)
    split = any(re.search(r"\b(q|query|q_proj)\.weight", name) for name in surplus)
    if fused and split:
        return ["(its q, k and v are split; this format fuses them)"]
    if any(name.endswith("qkv.weight") for name in surplus):
        return ["(its q, k and v are fused; this format splits them)"]
    blocks = sorted({int(found[1]) for n in missing if (found := re.match(r"blocks\.(\d+)\.", n))})
    return [f"(blocks {blocks[0]} to {blocks[-1]} lack tensors)"] if blocks else []

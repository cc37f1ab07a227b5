"""When dense features of a stage degrade while global ones do not: what calls for a Gram anchor.

DINOv3, arXiv:2508.10104, section 4 and figure 5. Decided from rows of metrics.jsonl alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dinojax.eval.suite import SUITE

IN_A_ROW = 3  # evaluations below the best
POINTS = 1.0  # of mIoU, in percent, below the best
DENSE, COSINE = "ridge/miou", "tokens/cls_patch"


class Degraded(NamedTuple):
    """evidence: the numbers. best: the step whose dense features were the best."""

    evidence: str
    best: int


def degraded(values: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Degraded | None:
    """What the evaluations of a stage tell; None where one of the three signs is not there.

    The ridge's mIoU is more than a point below its best at each of the last three evaluations, k-NN
    is at least what it was at the best, and the cosine of cls and patches is larger. rows: of
    evaluations, in order; k-NN and cosines are taken where they were last measured.
    """
    rows = list(rows)
    dense = _column(rows, DENSE)
    if len(dense) <= IN_A_ROW:
        return None
    before, last = dense[:-IN_A_ROW], dense[-IN_A_ROW:]
    best_step, best = max(before, key=lambda pair: pair[1])
    if any(value >= best - POINTS for _, value in last):
        return None
    knn = SUITE["knn"].main_column(values)
    end = last[-1][0]
    knn_then, knn_now = (_at(rows, knn, step) for step in (best_step, end))
    cosine_then, cosine_now = (_at(rows, COSINE, step) for step in (best_step, end))
    if knn_then is None or knn_now is None or cosine_then is None or cosine_now is None:
        return None
    if knn_now < knn_then or cosine_now <= cosine_then:
        return None
    below = ", ".join(f"{value:.1f}" for _, value in last)
    return Degraded(
        f"{DENSE} {best:.1f} % at step {best_step}, then {below} % at the last {IN_A_ROW}"
        f" evaluations (step {end}); {knn} {knn_then:.1f} % -> {knn_now:.1f} %;"
        f" {COSINE} {cosine_then:.3f} -> {cosine_now:.3f}",
        best_step,
    )


def advice(values: Mapping[str, Any], best: int) -> str:
    """What to do where dense features were best at step `best` of the stage."""
    return (
        f"Add a stage with gram.enabled=True and gram.anchor={values['stage']}/{best} (or the"
        " checkpoint nearest to it; checkpoint.keep_every keeps some), which starts from this one."
    )


def _column(rows: list[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def _at(rows: list[Mapping[str, Any]], name: str, step: int) -> float | None:
    """The last value measured up to a step."""
    found = [value for at, value in _column(rows, name) if at <= step]
    return found[-1] if found else None

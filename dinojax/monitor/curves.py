"""What the charts of report.html show of a run."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dinojax.configs.keys import ALL_TERMS
from dinojax.eval.suite import SUITE
from dinojax.monitor.pages import Figure
from dinojax.runs.files import RunFiles
from dinojax.runs.loss_ranges import loss_ranges
from dinojax.viz.charts import line_chart


class Curves(NamedTuple):
    """A chart of columns of metrics.jsonl."""

    note: str  # what it says
    columns: Sequence[str]
    unit: str
    log: bool = False


# Charts beside chance and floor (runs/loss_ranges.py), and all other terms of the loss.
WITH_RANGES = {
    "DINO loss": ("dino_local", "dino_global"),
    "iBOT loss": ("ibot",),
    "Contrastive loss": ("contrastive",),
    "Sigmoid loss": ("sigmoid",),
}
OTHER_TERMS = tuple(t for t in ALL_TERMS if all(t not in own for own in WITH_RANGES.values()))
# Title -> what is in the chart.
CURVES: dict[str, Curves] = {
    "Other losses": Curves(
        "KoLeo falls while images spread, SIGReg while they become normal.", OTHER_TERMS, "loss"
    ),
    "Entropy": Curves(
        "Share of the maximum. A teacher at 1 says nothing, one at 0 shouts.",
        ("teacher_entropy/dino", "teacher_entropy/ibot")
        + ("student_entropy/dino", "student_entropy/ibot"),
        "share of log(prototypes)",
    ),
    "Prototypes": Curves(
        "Share of prototypes that come first for some row, and the mean largest target.",
        ("prototypes_used/dino", "prototypes_used/ibot", "teacher_max/dino", "teacher_max/ibot"),
        "share",
    ),
    "Effective rank of cls": Curves("Near 1 means collapse.", ("effective_rank",), "dimensions"),
    "Spread and neighbours": Curves(
        "Distance to the most similar other image; share with a twin.",
        ("cls_spread", "neighbor_distance", "neighbor_distance_p05", "duplicates"),
        "distance of unit vectors; share",
    ),
    "Gradient norms": Curves(
        "Before clipping, logarithmic.",
        ("grad_norm/backbone", "grad_norm/dino_head", "grad_norm/ibot_head"),
        "L2 norm",
        True,
    ),
    "Patches": Curves(
        "cls_patch_cosine rising while locality falls means that dense features degrade.",
        ("cls_patch_cosine", "patch_cosine", "locality", "probe/drift"),
        "cosine",
    ),
    "Token lengths": Curves(
        "Before the final norm.", ("cls_norm", "patch_norm", "patch_norm_max"), "L2 norm"
    ),
    "Throughput": Curves("With saving and evaluation.", ("images_per_second",), "images/s"),
    "Waiting for data": Curves("Below 0.05 is normal.", ("data_wait",), "share of the time"),
    "Change of the ema per step": Curves("Logarithmic.", ("ema_change",), "relative length", True),
    "Learning rate": Curves("", ("lr",), "learning rate"),
}


def figures(run: RunFiles) -> Iterator[Figure]:
    """All charts of a run (`read_whole`); those without a point hold None."""
    last = max((row["step"] for row in [*run.rows[-1:], *run.evaluations[-1:]]), default=0)
    draw = functools.partial(line_chart, starts=run.starts, last_step=last)
    ranges = loss_ranges(run.values)
    cosine = run.values.get("distill.enabled") and run.values["distill.targets"] == "features"
    unit = "1 - cosine" if cosine else "cross entropy (nats)"
    for title, terms in WITH_RANGES.items():
        if terms[0] not in ranges:
            continue
        marks = {"chance": ranges[terms[0]].chance, "floor": ranges[terms[0]].floor}
        lines = {term: run.column(term) for term in terms}
        note = "Chance: a student that says nothing. Floor: the least that targets allow."
        yield Figure(title, note, draw(lines, marks=marks, unit=unit))
    yield from _evaluations(run, draw)
    for title, curves in CURVES.items():
        lines = {n: run.column(n) or run.evaluations.column(n) for n in curves.columns}
        yield Figure(title, curves.note, draw(lines, unit=curves.unit, log=curves.log))


def _evaluations(run: RunFiles, draw: Any) -> Iterator[Figure]:
    for evaluation in SUITE.values():
        lines = {
            name.removeprefix(evaluation.prefix): run.evaluations.column(name)
            for name in evaluation.columns(run.evaluations)
        }
        title = evaluation.title[:1].upper() + evaluation.title[1:]
        yield Figure(title, evaluation.note, draw(lines, unit=evaluation.unit))

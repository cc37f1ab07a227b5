"""`dinojax doctor RUN`: what is wrong with a run, in words, and what to do. Needs no accelerator.

Every rule looks at the files alone and yields findings; HEALTH.md says what normal looks like.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

from dinojax.runs import RunFiles, loss_ranges, read_run

RECENT = 0.25  # share of the rows that count as now
AT_CHANCE = 0.015  # distance to chance, as a share of the way to the floor
FEWEST_ROWS = 8  # before that, nothing is said about curves
LOSSES = {"dino_local": "dino", "dino_global": "dino", "ibot": "ibot"}  # term -> its head


@dataclasses.dataclass(frozen=True)
class Finding:
    """severity: problem (act now) | warning (look) | note. evidence: numbers and steps."""

    severity: str
    name: str
    evidence: str
    meaning: str
    advice: str


def diagnose(run: RunFiles) -> list[Finding]:
    """All findings, problems first."""
    rules = [_incidents, _progress, _data]
    if len(run.rows) >= FEWEST_ROWS:
        rules += [_chance, _teacher, _collapse, _gradients, _dense, _neighbors]
    found = [finding for rule in rules for finding in rule(run)] + list(_knn(run))
    order = ("problem", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def main(run_dir: str | Path) -> list[Finding]:
    """Print the findings of a run and return them. Raises as `read_run` for unreadable ones."""
    run = read_run(run_dir)
    found = diagnose(run)
    last = run.rows[-1]["step"] if run.rows else 0
    print(f"{run.directory}: step {last} of {run.values['num_steps']}, {len(run.rows)} rows read")
    for finding in found:
        print(f"\n{finding.severity.upper()}: {finding.name}\n  seen: {finding.evidence}")
        print(f"  means: {finding.meaning}\n  do: {finding.advice}")
    if not any(finding.severity != "note" for finding in found):
        print("\nNothing looks wrong." if run.rows else "\nNothing to judge yet.")
    return found


def _median(run: RunFiles, name: str, last: float = RECENT) -> float | None:
    values = [value for _, value in run.column(name, last)]
    return statistics.median(values) if values else None


def _incidents(run: RunFiles) -> Iterator[Finding]:
    if not run.autopsies:
        return
    last = run.autopsies[-1]
    stopped = max(autopsy["scalars"]["bad_steps"] for autopsy in run.autopsies) >= 3
    steps = ", ".join(str(autopsy["step"]) for autopsy in run.autopsies[-5:])
    yield Finding(
        "problem" if stopped else "warning",
        "steps that were not finite",
        f"{len(run.autopsies)} of them (last: {steps}); the last: {last['culprit']}",
        "Their updates were left out." + " Three came in a row, so the run stopped." * stopped,
        f"dinojax replay {run.directory / 'autopsy' / str(last['step'])} names the weight, gradient"
        " or image it begins in. Then lower schedules.lr.peak or optim.clip, or set"
        " precision.compute=float32.",
    )


def _progress(run: RunFiles) -> Iterator[Finding]:
    num_steps, every = run.values["num_steps"], run.values["checkpoint.every"]
    last = run.rows[-1]["step"] if run.rows else 0
    if not run.checkpoints:
        yield Finding(
            "problem" if last > every else "note",
            "no checkpoint yet",
            f"step {last}, one is due every {every} steps (checkpoint.every)",
            "If the run ends now, all is lost.",
            "See log.txt for errors while saving, or lower checkpoint.every.",
        )
    elif last < num_steps:
        yield Finding(
            "note",
            "not finished",
            f"last row at step {last} of {num_steps}, newest checkpoint {run.checkpoints[-1]}",
            "The run is under way, or it ended early.",
            "If it ended: the same command continues from the checkpoint; log.txt says why.",
        )


def _data(run: RunFiles) -> Iterator[Finding]:
    waiting = _median(run, "data_wait")
    if waiting is not None and waiting > 0.05 and len(run.rows) >= FEWEST_ROWS:
        yield Finding(
            "problem" if waiting > 0.3 else "warning",
            "waiting for data",
            f"data_wait is {waiting:.0%} of the time (median of the last rows; normal: below 5 %)",
            "The devices stand idle while images are read and decoded.",
            "Raise data.num_workers and data.prefetch, lower data.box_size, or convert the images"
            " to records on fast storage (dinojax data convert).",
        )
    if run.bad_images:
        yield Finding(
            "note",
            "bad images",
            f"{len(run.bad_images)} replaced; the first: {run.bad_images[0]['reason']}",
            "Others were shown in their place.",
            f"Repair or remove those listed in {run.directory / 'bad_images.jsonl'}.",
        )


def _chance(run: RunFiles) -> Iterator[Finding]:
    """Losses at the value of a student that says nothing, or below what targets allow."""
    stuck: dict[str, str] = {}
    for term, reach in loss_ranges(run.values).items():
        recent = run.column(term, RECENT)
        if not recent:
            continue
        first, value = recent[0][0], statistics.median(x for _, x in recent)
        told = f"{value:.2f}, chance {reach.chance:.2f}, floor {reach.floor:.2f}"
        warm = first > run.values["schedules.lr.warmup"]
        if warm and all(abs(reach.position(x) - 1) < AT_CHANCE for _, x in recent):
            stuck.setdefault(LOSSES[term], f"{term} at chance since step {first}: {told}")
        elif reach.floor - value > 0.05 * reach.chance:
            yield Finding(
                "problem",
                f"{term} below its floor",
                told,
                "Balanced targets do not allow this value: the teacher has collapsed, or the"
                " batch is not what the config says.",
                "Look at effective_rank and teacher_entropy; compare config.json with the launch.",
            )
    for head, evidence in stuck.items():
        entropy = _median(run, f"teacher_entropy/{head}")
        silent = entropy is None or entropy > 0.95
        told = "" if entropy is None else f"; teacher entropy {entropy:.1%} of its maximum"
        yield Finding(
            "problem",
            f"the {head} loss is at chance",
            evidence + told,
            "The targets carry no signal." if silent else "The student's head is not learning.",
            "Usual causes: a batch too small for the prototypes, too high a teacher temperature, or"
            f" logits too small at the start. Lower {head}_head.prototypes, set"
            f" {head}_head.prototype_norm='unit', lower schedules.teacher_temperature."
            if silent
            else "Check schedules.lr, optim.freeze_last_layer, and grad_norm of this head.",
        )
    reach = loss_ranges(run.values)["dino_local"]
    if reach.floor > 0.5 * reach.chance:
        yield Finding(
            "note",
            "many prototypes for this batch",
            f"the DINO losses can only move between {reach.floor:.2f} and {reach.chance:.2f}",
            "Sinkhorn shares the prototypes among few rows; the losses stay high and say little.",
            "Lower dino_head.prototypes, or raise batch_size, if k-NN stalls as well.",
        )


def _teacher(run: RunFiles) -> Iterator[Finding]:
    change = _median(run, "ema_change")
    lr = _median(run, "lr")
    # The momentum ends at 1, so only a long stillness counts.
    still = run.column("ema_change", 0.5)
    if change is not None and lr and still and max(x for _, x in still) < 1e-9:
        momentum = _median(run, "momentum", 0.5) or 0.0
        yield Finding(
            "problem",
            "the teacher is frozen",
            f"ema_change is 0 since step {still[0][0]}, momentum {momentum:.6f}, lr {lr:.3g}",
            "The student learns, but its moving average, which is what is evaluated, stays.",
            "Lower schedules.momentum.peak (0.992 to 0.999 is usual)."
            if momentum >= 1 - 1e-7
            else "The momentum is below 1, so this is a defect: please report it with this run.",
        )
    entropy = _median(run, "teacher_entropy/dino")
    if entropy is not None and entropy > 0.98 and run.rows[-1]["step"] > 50:
        yield Finding(
            "warning",
            "the teacher is almost uniform",
            f"teacher_entropy/dino {entropy:.1%} of its maximum",
            "Targets that prefer nothing teach nothing.",
            "Lower schedules.teacher_temperature, or set dino_head.prototype_norm='unit'.",
        )


def _collapse(run: RunFiles) -> Iterator[Finding]:
    rank, spread = _median(run, "effective_rank"), _median(run, "cls_spread")
    if rank is None or spread is None:
        return
    best = max(value for _, value in run.column("effective_rank"))
    if rank < 1.5 or spread < 0.01:
        yield Finding(
            "problem",
            "the features have collapsed",
            f"effective_rank {rank:.1f} (best {best:.1f}), cls_spread {spread:.4f}",
            "All images get nearly the same cls token.",
            "Go back to an earlier checkpoint. Lower schedules.lr.peak, raise losses.koleo, raise"
            " schedules.momentum, check that the images differ (dinojax data check).",
        )
    elif rank < 0.3 * best:
        yield Finding(
            "warning",
            "the features lose directions",
            f"effective_rank fell from {best:.1f} to {rank:.1f}",
            "Images are told apart by fewer and fewer properties.",
            "Watch k-NN; if it falls as well, go back and lower schedules.lr.peak.",
        )


def _gradients(run: RunFiles) -> Iterator[Finding]:
    for part in ("backbone", "dino_head", "ibot_head"):
        rows = run.column(f"grad_norm/{part}")
        if len(rows) < FEWEST_ROWS:
            continue
        size = max(2, len(rows) // 8)
        before = statistics.median(x for _, x in rows[:-size])
        after = statistics.median(x for _, x in rows[-size:])
        if after > 10 * max(before, 1e-12):
            yield Finding(
                "problem",
                f"exploding gradients in {part}",
                f"grad_norm/{part} {after:.3g} since step {rows[-size][0]}, {before:.3g} before",
                "The step is too large for where the weights are; losses follow.",
                "Go back to an earlier checkpoint; lower schedules.lr.peak or optim.clip, lengthen"
                " the warm-up.",
            )


def _dense(run: RunFiles) -> Iterator[Finding]:
    """Patches that align with cls and lose their place. DINOv3, figure 5."""
    cosine, local = run.column("cls_patch_cosine"), run.column("locality")
    now, here = _median(run, "cls_patch_cosine", 0.1), _median(run, "locality", 0.1)
    if now is not None and here is not None and len(cosine) >= 2 * FEWEST_ROWS:
        # The first quarter is left out: random weights are very local.
        middle = slice(len(cosine) // 4, len(cosine) // 2)
        early, best = (statistics.median(x for _, x in rows[middle]) for rows in (cosine, local))
        if now > early + 0.15 and here < 0.6 * best:
            yield Finding(
                "warning",
                "patch features degrade",
                f"cls_patch_cosine {early:.2f} -> {now:.2f}, locality {best:.2f} -> {here:.2f}",
                "Patches lose what is special about their place while cls still improves; dense"
                " tasks suffer.",
                "Add a Gram stage (gram.enabled=True) anchored at a checkpoint from before the"
                " change, or stop here.",
            )
    norm, largest = _median(run, "patch_norm"), _median(run, "patch_norm_max")
    if norm and largest is not None and largest > 10 * norm:
        yield Finding(
            "warning",
            "patches with very long tokens",
            f"patch_norm_max {largest:.1f}, mean patch_norm {norm:.1f}",
            "Some patches serve as scratch memory and spoil similarity maps.",
            "Train with model.num_registers=4.",
        )


def _neighbors(run: RunFiles) -> Iterator[Finding]:
    twins = _median(run, "duplicates")
    if twins is not None and twins > 0.01:
        yield Finding(
            "warning",
            "near-duplicate images",
            f"{twins:.1%} of crops have a twin in their group (neighbor_distance below 0.05)",
            "KoLeo pushes equal images apart, which no network can do; or features collapse.",
            "Remove duplicates (dinojax data check lists exact ones), or lower losses.koleo.",
        )


def _knn(run: RunFiles) -> Iterator[Finding]:
    name = f"knn/{run.values['knn.features']}"
    rows = [(row["step"], row[name]) for row in run.evaluations if row.get(name) is not None]
    if len(rows) < 2:
        return
    (first_step, first), (step, last) = rows[0], rows[-1]
    best_step, best = max(rows, key=lambda row: row[1])
    if last < first and step > 0.2 * run.values["num_steps"]:
        yield Finding(
            "problem",
            "worse than at the start",
            f"{name} {first:.1f} % at step {first_step}, {last:.1f} % at step {step}",
            "Training has made the features less useful than those of random weights.",
            "Read the other findings first; if there are none, compare schedules with a recipe.",
        )
    elif last < best - max(2.0, 0.05 * best) and not math.isclose(best_step, step):
        yield Finding(
            "warning",
            "k-NN falls",
            f"{name} {best:.1f} % at step {best_step}, {last:.1f} % at step {step}",
            "The features were better before.",
            "If it goes on for three evaluations, go back to that checkpoint with a lower"
            " schedules.lr.peak.",
        )

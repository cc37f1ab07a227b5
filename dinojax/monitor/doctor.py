"""`dinojax doctor RUN`: what is wrong with a run, in words, and what to do. Needs no accelerator.

Every rule looks at the files alone and yields findings; those about curves are in ailments.py, and
docs/health.md says what normal looks like.
"""

from collections.abc import Iterator
from pathlib import Path

from dinojax.config import stages
from dinojax.eval import suite
from dinojax.monitor import diagnostics
from dinojax.monitor.findings import FEWEST_ROWS, Finding, median
from dinojax.monitor.headline import state
from dinojax.runs import degradation, early_stopping
from dinojax.runs.files import RunFiles, read_run
from dinojax.runs.loss_ranges import loss_ranges

__all__ = ["FEWEST_ROWS", "Finding", "diagnose", "main"]


def diagnose(run: RunFiles) -> list[Finding]:
    """All findings, problems first."""
    found = [
        finding for rule in (_incidents, _progress, _data, _prototypes) for finding in rule(run)
    ]
    if len(run.rows) >= FEWEST_ROWS:
        grave = [finding for rule in diagnostics.GRAVE for finding in rule(run)]
        # What a grave ailment brings with it is not told as if it stood alone.
        ill = any(finding.severity == "problem" for finding in grave)
        rules = () if ill else diagnostics.LIGHT
        found += grave + [finding for rule in rules for finding in rule(run)]
    order = ("problem", "warning", "note")
    return sorted(
        [*found, *_evaluated(run), *_degraded(run), *_watched(run)],
        key=lambda finding: order.index(finding.severity),
    )


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
        print(f"\n{verdict(run)}")
    return found


def verdict(run: RunFiles) -> str:
    """What to say of a run without problems or warnings."""
    if not run.rows:
        return "Nothing to judge yet."
    if len(run.rows) < FEWEST_ROWS:
        return (
            f"Too early to judge: {len(run.rows)} rows, and curves are read from {FEWEST_ROWS} on"
            f" (step {FEWEST_ROWS * run.values['log.every']})."
        )
    return "Nothing looks wrong."


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
        f"dinojax replay {run.directory / 'autopsy' / last['folder']} names the weight, gradient"
        " or image it begins in. Then lower schedules.lr.peak or optim.clip, or set"
        " precision.compute=float32.",
    )


def _progress(run: RunFiles) -> Iterator[Finding]:
    num_steps, every = run.values["num_steps"], run.values["checkpoint.every"]
    last, standing = run.rows[-1]["step"] if run.rows else 0, state(run)
    share = run.values["until.left_chance"]  # None: only num_steps ends a run, or once did
    if not run.checkpoints and run.unwritten:
        yield Finding(
            "note",
            "no checkpoint yet",
            f"that of step {run.unwritten[-1]} is not whole: it is being written, or was torn",
            "If the run ends now, all is lost.",
            "dinojax ckpt inspect tells what is there; log.txt has errors while saving.",
        )
    elif not run.checkpoints:
        yield Finding(
            "problem" if last > every else "note",
            "no checkpoint yet",
            f"step {last}, one is due every {every} steps (checkpoint.every)",
            "If the run ends now, all is lost.",
            "See log.txt for errors while saving."
            if last > every
            else "Wait for the first one, or lower checkpoint.every.",
        )
    elif run.finished is not None and run.finished < num_steps and share is not None:
        yield Finding(
            "note",
            "ended before num_steps",
            f"at step {run.finished} of at most {num_steps} the losses had left chance by"
            f" {share:g}",
            "That is what until.left_chance asks for.",
            "The same command, without --stage, goes on to the next stage if there is one.",
        )
    elif last < num_steps:
        yield Finding(
            "note",
            "not finished",
            f"last row at step {last} of {num_steps}, newest checkpoint {run.checkpoints[-1]}"
            + _last_event(run),
            f"The run: {standing.value}.",
            "Once it has ended, the same command continues from the checkpoint; log.txt has more.",
        )


def _last_event(run: RunFiles) -> str:
    """The last line of resumes.jsonl in words."""
    if not run.resumes:
        return ""
    event = run.resumes[-1]
    reason = f": {event['reason']}" if "reason" in event else ""
    when = f" at {event['time']}" if "time" in event else ""
    return f"; last {event['event']}{when}{reason}"


def _data(run: RunFiles) -> Iterator[Finding]:
    waiting = median(run, "data_wait")
    if waiting is not None and waiting > 0.05 and len(run.rows) >= FEWEST_ROWS:
        yield Finding(
            "problem" if waiting > 0.3 else "warning",
            "waiting for data",
            f"data_wait is {waiting:.0%} of the time (median of the last rows; normal: below 5 %)",
            "The devices stand idle while images are read and decoded.",
            "Raise data.num_workers, data.num_threads and data.prefetch (here"
            f" {run.values['data.num_workers']}, {run.values['data.num_threads']} and"
            f" {run.values['data.prefetch']}), store smaller images near the machine (dinojax data"
            " convert), or lower data.box_size. dinojax data bench tells what suffices.",
        )
    if run.bad_images:
        yield Finding(
            "note",
            "bad images",
            f"{len(run.bad_images)} replaced; the first: {run.bad_images[0]['reason']}",
            "Others were shown in their place.",
            f"Repair or remove those listed in {run.home / 'bad_images.jsonl'}.",
        )


def _prototypes(run: RunFiles) -> Iterator[Finding]:
    reach = loss_ranges(run.values).get("dino_local")
    if reach is None:  # a text stage
        return
    if reach.floor > 0.5 * reach.chance:
        yield Finding(
            "note",
            "many prototypes for this batch",
            f"the DINO losses can only move between {reach.floor:.2f} and {reach.chance:.2f}",
            "Sinkhorn shares the prototypes among few rows; the losses stay high and say little.",
            "Lower dino_head.prototypes, or raise batch_size, if k-NN stalls as well.",
        )


def _watched(run: RunFiles) -> Iterator[Finding]:
    """What the recipe asked to be told: results below those of step 0, losses still at chance."""
    if lost := early_stopping.fallen(run.values, run.evaluations):
        yield Finding(
            "problem",
            "below the network it started from",
            lost,
            "The stage makes worse what it was given.",
            early_stopping.WAYS_ON,
        )
    if run.rows and run.rows[-1]["step"] >= run.values["num_steps"]:
        if told := early_stopping.never_left(run.values, run.rows):
            yield Finding(
                "problem",
                "the losses never left chance",
                told,
                "Heads that know nothing teach a backbone nothing.",
                "As said above: more steps, a higher rate, fewer prototypes.",
            )


def _degraded(run: RunFiles) -> Iterator[Finding]:
    """Evaluations that say together what curves of losses do not."""
    if found := degradation.degraded(run.values, run.evaluations):
        yield Finding(
            "warning",
            "dense features degrade while k-NN does not",
            found.evidence,
            "Patches align with cls and lose their place; segmentation, depth and matching suffer.",
            degradation.advice(run.values, found.best)
            + (
                f" Checkpoints there: {', '.join(map(str, run.checkpoints[-5:]))}."
                if run.checkpoints and found.best not in run.checkpoints
                else ""
            ),
        )


def _from_random(run: RunFiles) -> bool:
    """Whether a stage starts from random weights, and not from what was trained before."""
    source = run.values["start.source"]
    return source == stages.NOTHING or (source == stages.PREVIOUS and run.stage == run.stages[0])


def _evaluated(run: RunFiles) -> Iterator[Finding]:
    """How the first evaluation of the table that is watched and was measured went."""
    if run.values["optim.freeze_backbone"]:
        return  # cannot change
    for name, evaluation in suite.watched(run.values).items():
        rows = run.evaluations.column(name)
        if rows:
            yield from _went(run, name, evaluation.title, rows)
            return


def _went(run: RunFiles, name: str, title: str, rows: list) -> Iterator[Finding]:
    """rows: (step, percent) of each evaluation."""
    if len(rows) < 2:
        return
    (first_step, first), (step, last) = rows[0], rows[-1]
    best_step, best = max(rows, key=lambda row: row[1])
    told = f"{name} {first:.1f} % at step {first_step}, {last:.1f} % at step {step}"
    noise = max(1.0, 0.05 * first)  # a thousand queries have a standard error of a point or more
    if last < first - noise and step > 0.2 * run.values["num_steps"]:
        yield Finding(
            "problem",
            "worse than at the start",
            told,
            "Training has made the features less useful than they were before the first step.",
            "Read the other findings first; if there are none, compare schedules with a recipe.",
        )
    elif (
        _from_random(run) and last < first + noise < 100.0 and step > 0.5 * run.values["num_steps"]
    ):
        yield Finding(
            "warning",
            f"{title} does not rise",
            told,
            "Training has not made the features more useful than those of random weights.",
            "Read the other findings first; if there are none, the run may be too short, or the"
            " classes may be told apart by what augmentations remove (colour, scale).",
        )
    elif last < best - max(2.0, 0.05 * best) and best_step != step:
        yield Finding(
            "warning",
            f"{title} falls",
            f"{name} {best:.1f} % at step {best_step}, {last:.1f} % at step {step}",
            "The features were better before.",
            "If it goes on for three evaluations, go back to that checkpoint with a lower"
            " schedules.lr.peak.",
        )

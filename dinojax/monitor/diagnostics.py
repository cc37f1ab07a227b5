"""What curves say of a run that learns badly: the doctor's rules on columns of metrics.jsonl.

Each rule looks at a run and yields findings. Their thresholds were set on runs made sick on
purpose and on healthy ones beside them (tests/programs/make_sick_runs.py); docs/health.md says
what is normal.
"""

import statistics
from collections.abc import Iterator

from dinojax.monitor.findings import FEWEST_ROWS, RECENT, Finding, median
from dinojax.runs.files import RunFiles
from dinojax.runs.loss_ranges import loss_ranges

# Distances to chance, as shares of the way to the floor. Small healthy runs may be 0.007 below.
AT_CHANCE, ABOVE_CHANCE = 0.003, 0.02
LEAST_STEPS = 100  # after the warm-up, in which a loss may stay at chance; or 0.3 x num_steps
STILL, FAST = 1e-5, 0.5  # length of student - ema over that of the ema
LOSSES = {  # term -> its head, or what else learns by it
    "dino_local": "dino",
    "dino_global": "dino",
    "ibot": "ibot",
    "contrastive": "contrastive",
    "sigmoid": "sigmoid",
}
JUMP = 30  # times its median that a gradient norm does not reach by chance
PARTS = ("backbone", "dino_head", "ibot_head")


def student_distances(run: RunFiles, last: float) -> list[float]:
    """Of the student to its ema, relative, from how far the ema moved towards it.

    Rows whose momentum is so near 1 that float32 swallows the movement are left out.
    """
    moves, momenta = dict(run.column("ema_change", last)), dict(run.column("momentum", last))
    steps = [step for step in moves if step in momenta and 1.0 - momenta[step] > 1e-5]
    return [moves[step] / (1.0 - momenta[step]) for step in steps]


def movement(run: RunFiles) -> Iterator[Finding]:
    """Whether the weights stand still, and the teacher with them or alone."""
    momenta = run.column("momentum", 0.5)
    lr, changes = median(run, "lr", 0.5), run.column("ema_change", 0.5)
    if lr is None or not changes or not momenta or run.values["optim.freeze_backbone"]:
        return
    since = changes[0][0]
    # The momentum ends at 1, so only one that stays there counts.
    if min(value for _, value in momenta) >= 1.0 - 1e-7:
        yield Finding(
            "problem",
            "the teacher is frozen",
            f"momentum is {momenta[0][1]:g} and ema_change"
            f" {max(value for _, value in changes):.1g} since step {since} at least; lr {lr:.3g}",
            "The student learns from a teacher that never learns, and the moving average, which"
            " is what is evaluated and exported, stays as it is.",
            "Start again with a lower schedules.momentum.start and schedules.momentum.peak: 0.992"
            " to 0.999, less for runs of a few thousand steps.",
        )
        return
    distances = student_distances(run, 0.5)
    if distances and max(distances) < STILL:
        yield Finding(
            "problem",
            "the weights stand still",
            f"student and ema differ by {max(distances):.1g} of their length since step {since};"
            f" lr {lr:.3g}",
            "Training changes nothing: every step costs time and teaches nothing.",
            "Raise schedules.lr.peak (and look at optim.lr_scaling and the length of the"
            " warm-up); 1e-4 to 2e-3 is usual."
            if lr < 1e-6
            else "The learning rate is not the cause: see grad_norm, and report this with the run.",
        )


def divergence(run: RunFiles) -> Iterator[Finding]:
    """Weights that are thrown about: losses at chance or above while tokens grow without end."""
    positions = loss_positions(run)
    lost = [term for term, position in positions.items() if position > 1.0 - AT_CHANCE]
    if not lost:
        return
    norms = run.column("patch_norm")
    first = norms[0][1] if norms else 0.0
    now, distances = median(run, "patch_norm") or 0.0, student_distances(run, 0.5)
    distance = statistics.median(distances) if distances else 0.0
    if now > 10 * first > 0 or distance > FAST:
        yield Finding(
            "problem",
            "the weights run away",
            f"patch_norm {first:.3g} -> {now:.3g}; student and ema differ by {distance:.0%} of"
            f" their length; no better than chance: {', '.join(lost)}",
            "Each step is longer than the distance over which its gradient means anything.",
            f"Start again, or go back to a checkpoint before it, with a lower schedules.lr.peak"
            f" (here {run.values['schedules.lr.peak']:.3g}, try a tenth), a longer warm-up, and"
            f" optim.clip (here {run.values['optim.clip']}).",
        )


def loss_positions(run: RunFiles) -> dict[str, float]:
    """Term -> 0 at its floor, 1 at chance: the median of the last rows, after the warm-up."""
    found = {}
    for term, reach in loss_ranges(run.values).items():
        recent = run.column(term, RECENT)
        if recent and recent[0][0] > run.values["schedules.lr.warmup"]:
            found[term] = reach.position(statistics.median(value for _, value in recent))
    return found


def chance(run: RunFiles) -> Iterator[Finding]:
    """Losses at the value of a student that says nothing, above it, or below what is possible."""
    positions, ranges = loss_positions(run), loss_ranges(run.values)
    stuck: dict[str, list[str]] = {}
    for term, position in positions.items():
        reach, value = ranges[term], median(run, term)
        told = f"{term} {value:.4g}, chance {reach.chance:.4g}, floor {reach.floor:.4g}"
        if position > 1.0 - AT_CHANCE:
            stuck.setdefault(LOSSES[term], []).append(told)
        elif value is not None and reach.floor - value > 0.05 * reach.chance:
            yield Finding(
                "problem",
                f"{term} below its floor",
                told,
                "Balanced targets do not allow this value: the teacher has collapsed, or the"
                " batch is not what the config says.",
                "Look at effective_rank and teacher_entropy; compare config.json with the launch.",
            )
    for head, evidence in stuck.items():
        above = max(
            positions[term] for term in LOSSES if LOSSES[term] == head and term in positions
        )
        entropy = median(run, f"teacher_entropy/{head}")
        told = "" if entropy is None else f"; teacher entropy {entropy:.1%} of its maximum"
        place = "above chance" if above > 1.0 + ABOVE_CHANCE else "at chance"
        seen = "; ".join(evidence) + told
        step, patience = run.rows[-1]["step"], max(LEAST_STEPS, 0.3 * run.values["num_steps"])
        if step < run.values["schedules.lr.warmup"] + patience:
            meaning = "Healthy runs leave chance some time after the warm-up."
            yield Finding("note", f"the {head} loss is still {place}", seen, meaning, "Wait.")
            continue
        meaning, advice = _why_at_chance(run, head, silent=entropy is None or entropy > 0.95)
        yield Finding("problem", f"the {head} loss is {place}", seen, meaning, advice)


def _why_at_chance(run: RunFiles, head: str, *, silent: bool) -> tuple[str, str]:
    """(meaning, advice) of a head whose student does no better than saying nothing."""
    others = {finding.name for rule in (movement, divergence) for finding in rule(run)}
    if others & {"the weights stand still", "the weights run away"}:
        return f"As {others.pop()}, nothing is learned.", "Do as said there."
    if head in ("contrastive", "sigmoid"):
        return (
            "Images and captions do not meet: no better than a guess among the pairs of a step.",
            "Check that captions belong to their images and differ, schedules.lr, and grad_norm"
            " of vision_head and text_tower.",
        )
    if silent:
        return (
            "The targets carry no signal.",
            "Usual causes: a batch too small for the prototypes, too high a teacher temperature,"
            f" or logits too small at the start. Lower {head}_head.prototypes, set"
            f" {head}_head.prototype_norm='unit', lower schedules.teacher_temperature.",
        )
    return (
        "The student's head is not learning.",
        "Check schedules.lr, optim.freeze_last_layer, and grad_norm of this head.",
    )


def collapse(run: RunFiles) -> Iterator[Finding]:
    rank, spread = median(run, "effective_rank"), median(run, "cls_spread")
    if rank is not None and spread is not None:
        best = max(value for _, value in run.column("effective_rank"))
        if rank < 1.5 or spread < 0.01:
            yield Finding(
                "problem",
                "the features have collapsed",
                f"effective_rank {rank:.1f} (best {best:.1f}), cls_spread {spread:.4f}",
                "All images get nearly the same cls token.",
                "Go back to an earlier checkpoint. Lower schedules.lr.peak, raise losses.koleo,"
                " raise schedules.momentum, check that the images differ (dinojax data check).",
            )
        elif rank < 0.3 * best:
            yield Finding(
                "warning",
                "the features lose directions",
                f"effective_rank fell from {best:.1f} to {rank:.1f}",
                "Images are told apart by fewer and fewer properties.",
                "Watch k-NN; if it falls as well, go back and lower schedules.lr.peak.",
            )
    for head in ("dino", "ibot"):
        used, entropy = (
            median(run, f"prototypes_used/{head}"),
            median(run, f"teacher_entropy/{head}"),
        )
        if used is not None and entropy is not None and used < 0.05 and entropy < 0.05:
            yield Finding(
                "problem",
                f"one {head} prototype takes all",
                f"teacher_entropy/{head} {entropy:.2g}, prototypes_used/{head} {used:.1%}",
                "Every image has the same target, so the loss is low and teaches nothing.",
                "Go back to an earlier checkpoint. Set losses.centering=sinkhorn, or lower"
                f" losses.center_momentum (here {run.values['losses.center_momentum']:g}), and"
                " raise schedules.teacher_temperature.",
            )


def gradients(run: RunFiles) -> Iterator[Finding]:
    """Norms that grew, or that jump."""
    warmup = run.values["schedules.lr.warmup"]
    for part in PARTS:
        rows = run.column(f"grad_norm/{part}")
        if len(rows) < FEWEST_ROWS:
            continue
        size = max(2, len(rows) // 8)
        before = statistics.median(value for _, value in rows[:-size])
        after = statistics.median(value for _, value in rows[-size:])
        # Norms are large before the warm-up ends, which is no illness.
        settled = [row for row in rows if row[0] > warmup]
        usual = statistics.median(value for _, value in settled) if settled else 0.0
        jumps = [row for row in settled if row[1] > JUMP * usual > 0]
        if after > 10 * max(before, 1e-12):
            evidence = f"{after:.3g} since step {rows[-size][0]}, {before:.3g} before"
        elif len(jumps) >= 2 and len(settled) >= FEWEST_ROWS:
            step, largest = max(jumps, key=lambda row: row[1])
            evidence = (
                f"{largest:.3g} at step {step} and above {JUMP} x its median ({usual:.3g}) in"
                f" {len(jumps)} of {len(settled)} rows"
            )
        else:
            continue
        yield Finding(
            "problem",
            f"exploding gradients in {part}",
            f"grad_norm/{part} {evidence}; optim.clip is {run.values['optim.clip']}",
            "The step is too large for where the weights are; losses follow.",
            "Go back to an earlier checkpoint; lower schedules.lr.peak"
            f" (here {run.values['schedules.lr.peak']:.3g}) or optim.clip, lengthen the warm-up.",
        )


def uniform_teacher(run: RunFiles) -> Iterator[Finding]:
    entropy = median(run, "teacher_entropy/dino")
    if entropy is not None and entropy > 0.99 and run.rows[-1]["step"] > 50:
        yield Finding(
            "warning",
            "the teacher is almost uniform",
            f"teacher_entropy/dino {entropy:.1%} of its maximum",
            "Targets that prefer nothing teach nothing.",
            "Lower schedules.teacher_temperature, or set dino_head.prototype_norm='unit'.",
        )


def dense(run: RunFiles) -> Iterator[Finding]:
    """Patches that align with cls and lose their place. DINOv3, figure 5."""
    cosine, local = run.column("cls_patch_cosine"), run.column("locality")
    now, here = median(run, "cls_patch_cosine", 0.1), median(run, "locality", 0.1)
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
    norm, largest = median(run, "patch_norm"), median(run, "patch_norm_max")
    if norm and largest is not None and largest > 10 * norm:
        yield Finding(
            "warning",
            "patches with very long tokens",
            f"patch_norm_max {largest:.1f}, mean patch_norm {norm:.1f}",
            "Some patches serve as scratch memory and spoil similarity maps.",
            "Train with model.num_registers=4.",
        )


def neighbors(run: RunFiles) -> Iterator[Finding]:
    twins = median(run, "duplicates")
    if twins is not None and twins > 0.01:
        yield Finding(
            "warning",
            "near-duplicate images",
            f"{twins:.1%} of crops have a twin in their group (neighbor_distance below 0.05)",
            "KoLeo pushes equal images apart, which no network can do; or features collapse.",
            "Remove duplicates (dinojax data check lists exact ones), or lower losses.koleo.",
        )


# Ailments of the whole run, and those that are told only where there is none of them.
GRAVE = (movement, divergence, collapse, gradients, chance)
LIGHT = (uniform_teacher, dense, neighbors)

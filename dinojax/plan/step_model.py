"""A modelled time of a step and its memory by component, from what the compiler found.

The time is uncalibrated: it compares strategies of one target, not targets.
"""

import math
from collections.abc import Sequence
from typing import Any

from dinojax.plan.targets import Target, parse

# Assumed, not measured: the share of peak FLOP/s that products reach, and of collectives that the
# compiler lets run beside them the share that is really hidden.
UTILISATION, HIDDEN = 0.5, 0.9
SECONDS = ("compute_seconds", "waiting_seconds", "overlapped_seconds", "step_seconds")
MODEL_NOTE = (
    f"modelled, uncalibrated: products at {UTILISATION:.0%} of peak, collectives at link speed, "
    f"{HIDDEN:.0%} of the overlappable ones hidden; compare strategies of one target, not targets"
)


def components(found: dict) -> dict[str, int]:
    """Bytes of one device. The last entry is what the compiler's peak leaves to all the rest.

    State and batch are exact. Gradients are as large as the student. logits and sinkhorn: the
    blocks of scores alive at a time, four in a loss and two in Sinkhorn, from their shapes.
    """
    blocks = found["blocks"].values()
    named = {
        **found["state"],
        "batch": found["batch_bytes"],
        "gradients": found["state"]["student"],
        "logits": max(4 * head["logits"] for head in blocks),
        "sinkhorn": max(2 * head["sinkhorn"] for head in blocks),
    }
    if "memory" in found:
        # Logits and Sinkhorn are never alive together, and gradients only after the logits.
        rest = found["memory"]["peak"] - sum(named.values()) + named["sinkhorn"]
        named["activations and the rest"] = max(rest, 0)
    return named


def modelled(found: dict, price: float | None = None) -> dict[str, Any]:
    """Seconds of a step and what follows from them; see MODEL_NOTE. price: of a device hour.

    Of several programs those of the students are added up in turn; apart the slowest one counts.
    """
    target = parse(found["target"])
    of_each = [_seconds(program, target) for program in programs(found)]
    seconds = {name: together(found, [one[name] for one in of_each]) for name in SECONDS}
    step, devices = seconds["step_seconds"], target.num_devices
    hours = 1e6 / found["batch_size"] * step / 3600 * devices
    result: dict[str, Any] = {
        "note": MODEL_NOTE,
        **seconds,
        "images_per_second": found["batch_size"] / step,
        "device_hours_per_million_images": hours,
    }
    if price is not None:
        result["cost_per_million_images"] = hours * price
    return result


def _seconds(program: dict, target: Target) -> dict[str, float]:
    """Of one program on its devices, which may be a part of the target's."""
    compute = program["flops"] / program["devices"] / (target.chip.flops * UTILISATION)
    times = [
        (one["overlapped"], one["wire"] / bandwidth(target, one, program))
        for one in program.get("collectives", ())
    ]
    waiting = sum(seconds for overlapped, seconds in times if not overlapped)
    beside = sum(seconds for overlapped, seconds in times if overlapped)
    step = compute + waiting + max(0.0, beside - HIDDEN * compute)
    return dict(zip(SECONDS, (compute, waiting, beside, step), strict=True))


def programs(plan: dict) -> list[dict]:
    """Those of a step: one, or all of several students of one teacher (family_plan.py)."""
    return plan.get("programs") or [plan]


def together(plan: dict, numbers: Sequence[float]) -> float:
    """A number of the whole step from one of each program: the teacher's, and the students', added
    up in turn and the largest one apart."""
    pairs = list(zip(programs(plan), numbers, strict=True))
    own = [number for program, number in pairs if program.get("learns", True)]
    rest = sum(number for program, number in pairs if not program.get("learns", True))
    return rest + (max(own) if plan.get("apart") else sum(own))


def bandwidth(target: Target, one: dict, program: dict) -> float:
    """Bytes/s out of a device for this collective of a program."""
    chip, devices = target.chip, target.num_devices
    if chip.platform == "gpu":
        group, machine, first = one["group"], target.shape[1], program.get("first", 0)
        slow = chip.slow or chip.fast
        if first % machine + program["devices"] <= machine:
            return chip.fast
        if not one["near"] or first % min(group, machine):
            return slow
        if machine % group == 0:
            return chip.fast
        # Over machines with all cards of each every byte crosses once.
        return machine * slow if group % machine == 0 else slow
    if not chip.dims or one["group"] >= devices:
        return chip.fast
    spanned = max(1, round(chip.dims * math.log(one["group"]) / math.log(devices)))
    return chip.fast * spanned / chip.dims


def complete(found: dict, price: float | None = None) -> dict:
    """What was found with its components and the model."""
    target = parse(found["target"])
    usable = target.chip.usable
    known = {
        "usable": None if math.isinf(usable) else usable,
        "share": target.chip.share,
        "modelled": modelled(found, price),
    }
    if "programs" not in found:
        return {**found, "components": components(found), **known}
    seconds = [_seconds(program, target)["step_seconds"] for program in found["programs"]]
    own = [s for s, program in zip(seconds, found["programs"], strict=True) if program["learns"]]
    each = []
    for program, s in zip(found["programs"], seconds, strict=True):
        idle = {"idle": 1 - s / max(own)} if found["apart"] and program["learns"] else {}
        each.append({**program, "step_seconds": s, **idle})
    return {**found, "programs": each, **known}

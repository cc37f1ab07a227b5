"""From what one.py found to what it means: memory by component, a modelled step time, a table."""

import math
from collections.abc import Sequence
from typing import Any

from dinojax.plan.targets import GIB, Target, parse
from dinojax.sharding.gpu_memory import VARIABLE

# Assumed, not measured: the share of peak FLOP/s that products reach, and of collectives that the
# compiler lets run beside them the share that is really hidden.
UTILISATION, HIDDEN = 0.5, 0.9
KINDS = ("all-gather", "reduce-scatter", "all-reduce")
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
        (one["overlapped"], one["wire"] / _bandwidth(target, one, program))
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


def _bandwidth(target: Target, one: dict, program: dict) -> float:
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


def summary(plans: list[dict]) -> str:
    """A line per plan, as a markdown table."""
    heads = ["target", "stage", "crops", "strategy", "mesh", "peak GiB", "of", "fits"]
    heads += ["TFLOP/device", "AG", "RS", "AR", "step s*", "images/s*", "compiler s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for plan in plans:
        if "error" in plan:
            why = plan["error"].splitlines()[0]
            told = f"| {plan['target']} | - | - | {plan['strategy']} | refused: {why} |"
            lines.append(told + " |" * 10)
            continue
        peak = plan["memory"]["peak"] / GIB if "memory" in plan else None
        wire, model = wire_by_kind(plan), plan["modelled"]
        flops = together(plan, [p["flops"] / p["devices"] for p in programs(plan)])
        cells = [
            plan["target"],
            plan["stage"],
            crops_of(plan),
            plan["strategy"],
            _places(plan),
            f"{peak:.2f}" if peak is not None else plan["out_of_memory"],
            f"{plan['usable'] / GIB:.1f}" if plan["usable"] else "-",
            "yes" if plan["fits"] else "no",
            f"{flops / 1e12:.2f}",
            *(_wire_and_form(plan, wire, kind) for kind in KINDS),
            f"{model['step_seconds']:.3g}" if "memory" in plan else "-",
            f"{model['images_per_second']:.4g}" if "memory" in plan else "-",
            f"{plan['processor_seconds']:.0f}" if "memory" in plan else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = "AG, RS, AR: all-gather, reduce-scatter, all-reduce, GB out of a device, and those of "
    note += f"weights in closed form; compiler: processor seconds. *{MODEL_NOTE}."
    shares = {plan["share"] for plan in plans if plan.get("share", 1) != 1}
    note += "".join(
        f" of: the {share:.0%} of a GPU that JAX takes ({VARIABLE})." for share in shares
    )
    return "\n".join(lines) + "\n\n" + note


def _places(plan: dict) -> str:
    if "mesh" in plan:
        return " x ".join(str(size) for size in plan["mesh"].values())
    return "students apart" if plan["apart"] else "students in turn"


def _wire_and_form(plan: dict, wire: dict, kind: str) -> str:
    if not wire:
        return "-"
    return f"{wire.get(kind, 0) / 1e9:.2f} / {_in_closed_form(plan, kind) / 1e9:.2f}"


def crops_of(plan: dict) -> str:
    """Pixels of global and local crops as the student sees them, of several as they are cut, and
    their share of the steps."""
    crops = plan["crops"]
    share = f" ({crops['share']:.0%})" if crops["sizes"] > 1 else ""
    seen = "/".join(str(crops[name] // crops["reduction"]) for name in ("global", "local"))
    return seen + share


def wire_by_kind(plan: dict) -> dict[str, float]:
    """Bytes out of a device by kind of collective."""
    of_each: list[dict[str, float]] = []
    for program in programs(plan):
        found: dict[str, float] = {}
        for one in program.get("collectives", ()):
            found[one["kind"]] = found.get(one["kind"], 0.0) + one["wire"]
        of_each.append(found)
    kinds = dict.fromkeys(kind for found in of_each for kind in found)
    return {kind: together(plan, [found.get(kind, 0.0) for found in of_each]) for kind in kinds}


def _in_closed_form(plan: dict, kind: str) -> float:
    return together(plan, [p.get("closed_form", {}).get(kind, 0.0) for p in programs(plan)])


def details(plan: dict) -> str:
    """Memory and collectives of one plan, and its modelled time."""
    what = f"{plan['stage']}, crops of {crops_of(plan)}"
    of_many = "programs" in plan
    lines = [f"{plan['target']}, {plan['strategy']}, {what}: ", *(_many if of_many else _one)(plan)]
    lines[0] += plan["place"] if of_many else "memory of one device"
    model = plan["modelled"]
    if "memory" in plan:
        lines += _room(plan)
        lines.append(
            f"step {model['step_seconds']:.3g} s, {model['images_per_second']:.4g} images/s, "
            f"{model['device_hours_per_million_images']:.4g} device hours per million images"
        )
        if "cost_per_million_images" in model:
            lines.append(f"cost {model['cost_per_million_images']:.2f} per million images")
        lines.append(f"  ({MODEL_NOTE})")
    for change in plan.get("changes", ()):
        lines.append(f"fits with {' '.join(change['overrides'])}: {_short(change)}")
    if plan.get("changes") == []:
        lines.append("none of the changes tried makes it fit; use more devices")
    return "\n".join(lines)


def _room(plan: dict) -> list[str]:
    """Whether the peak fits in what a device has for arrays, and what that is."""
    if plan["usable"] is None:
        return []
    what = f"{_size(plan['usable']).strip()} of a device"
    if plan["share"] != 1:
        what = f"the {what}, {plan['share']:.0%} of it, that JAX takes ({VARIABLE})"
    return [f"{'fits' if plan['fits'] else 'does not fit'} in {what}"]


def _one(plan: dict) -> list[str]:
    """Memory by component and collectives of a step that is one program."""
    lines = []
    width = max(map(len, plan["components"]))
    for name, size in plan["components"].items():
        lines.append(f"  {name:{width}s} {_size(size)}")
    if "memory" in plan:
        lines.append(f"  {'peak':{width}s} {_size(plan['memory']['peak'])} (compiler)")
    else:
        lines.append(f"  does not fit: {plan['out_of_memory']}")
    lines.append("collectives of one step, bytes out of one device")
    for one in plan.get("collectives", ()):
        how = "overlapped" if one["overlapped"] else "waited for"
        lines.append(
            f"  {one['kind']:18s} among {one['group']:4d}  {_sent(one['wire']):>12s} "
            f"in {one['count']:5d}, {how}"
        )
    form = ", ".join(f"{kind} {_sent(size)}" for kind, size in plan["closed_form"].items())
    return [*lines, f"  of weights, in closed form: {form}", *_summed(plan)]


def _summed(plan: dict) -> list[str]:
    """Bytes and seconds for gradients, by choice of precision.reduce, at the plan's own pace."""
    target, sums = parse(plan["target"]), ("reduce-scatter", "all-reduce")
    found = [one for one in plan.get("collectives", ()) if one["kind"] in sums]
    seconds = sum(one["wire"] / _bandwidth(target, one, plan) for one in found)
    if not seconds:
        return []
    pace = seconds / sum(one["wire"] for one in found)
    told = [
        f"{_sent(n)} in {kind}, {n * pace:.2g} s*" for kind, n in plan["reduce"]["bytes"].items()
    ]
    chosen = plan["reduce"]["chosen"]
    return [f"  gradients among them, by precision.reduce ({chosen} here): {'; '.join(told)}"]


def _many(plan: dict) -> list[str]:
    """A row of each program of several students' step."""
    heads = ["program", "crops", "strategy", "mesh", "stays", "peak", "with what others keep"]
    heads += ["TFLOP/device", *KINDS, "step s*", "idle*", "compiler s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for program in plan["programs"]:
        wire, fits = wire_by_kind(program), "memory" in program
        seen = {"reduction": program["reduction"]} if "reduction" in program else {}
        cells = [
            program["name"],
            crops_of({**plan, "crops": {**plan["crops"], **seen}}) if seen else "",
            program["strategy"],
            _places(program),
            _size(program["kept"]).strip(),
            _size(program["memory"]["peak"]).strip() if fits else program["out_of_memory"],
            _size(program["peak"]).strip() if fits else "-",
            f"{program['flops'] / program['devices'] / 1e12:.4g}",
            *(_sent(wire.get(kind, 0.0)) if fits else "-" for kind in KINDS),
            f"{program['step_seconds']:.3g}" if fits else "-",
            f"{program['idle']:.1%}" if "idle" in program and fits else "-",
            f"{program['processor_seconds']:.0f}" if fits else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _size(size: float) -> str:
    return f"{size / GIB:9.3f} GiB" if size >= GIB else f"{size / 2**20:9.3f} MiB"


def _sent(size: float) -> str:
    return f"{size / 1e9:.3f} GB" if size >= 1e8 else f"{size / 1e6:.3f} MB"


def _short(plan: dict) -> str:
    peak, seconds = plan["memory"]["peak"] / GIB, plan["modelled"]["step_seconds"]
    return f"peak {peak:.2f} GiB, step {seconds:.3g} s (modelled)"


LARGE = 2**24  # bytes from which a parameter that is whole on every device is worth a mark


def shards(rows: list[dict], num_devices: int) -> str:
    """The table of shards.py, largest on a device first; * marks large replicated ones."""
    width = max(len(row["name"]) for row in rows)
    lines = []
    for row in sorted(rows, key=lambda row: -row["device_bytes"]):
        mark = "*" if row["device_bytes"] == row["bytes"] >= LARGE and num_devices > 1 else " "
        shape = " x ".join(
            f"{name or '-'} {n}" for name, n in zip(row["axes"], row["shape"], strict=True)
        )
        over = ", ".join(f"{n} over {axes}" for n, axes in row["sharded"].items()) or "whole"
        lines.append(
            f"{mark} {row['name']:{width}s} {row['device_bytes'] / 2**20:10.3f} MiB of "
            f"{row['bytes'] / 2**20:10.3f}  {over:28s} ({shape})"
        )
    device, whole = (sum(row[key] for row in rows) for key in ("device_bytes", "bytes"))
    lines.append(
        f"{len(rows)} parameters of the student, {device / 2**20:.1f} MiB of {whole / 2**20:.1f} "
        f"on each of {num_devices} devices. The state holds as much again in the ema, and twice as "
        "much in the optimizer."
    )
    marked = sum(line.startswith("*") for line in lines)
    if marked:
        lines.append(f"* {marked} large ones are whole on every device.")
    return "\n".join(lines)

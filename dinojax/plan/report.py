"""From what one.py found to what it means: memory by component, a modelled step time, a table."""

import math
from typing import Any

from dinojax.plan.targets import GIB, Chip, parse

# Assumed, not measured: the share of peak FLOP/s that products reach, and of collectives that the
# compiler lets run beside them the share that is really hidden.
UTILISATION, HIDDEN = 0.5, 0.9
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
    """Seconds of a step and what follows from them; see MODEL_NOTE. price: of a device hour."""
    target = parse(found["target"])
    devices = target.num_devices
    compute = found["flops"] / devices / (target.chip.flops * UTILISATION)
    times = [
        (one["overlapped"], one["wire"] / _bandwidth(target.chip, one, devices))
        for one in found.get("collectives", ())
    ]
    waiting = sum(seconds for overlapped, seconds in times if not overlapped)
    beside = sum(seconds for overlapped, seconds in times if overlapped)
    step = compute + waiting + max(0.0, beside - HIDDEN * compute)
    hours = 1e6 / found["batch_size"] * step / 3600 * devices
    result: dict[str, Any] = {
        "note": MODEL_NOTE,
        "compute_seconds": compute,
        "waiting_seconds": waiting,
        "overlapped_seconds": beside,
        "step_seconds": step,
        "images_per_second": found["batch_size"] / step,
        "device_hours_per_million_images": hours,
    }
    if price is not None:
        result["cost_per_million_images"] = hours * price
    return result


def _bandwidth(chip: Chip, one: dict, devices: int) -> float:
    """Bytes/s out of a device for this collective."""
    if chip.platform == "gpu":
        if one["near"]:
            # Within a machine, or over machines with all cards of each: every byte crosses once.
            return chip.fast if one["group"] <= 8 else 8 * (chip.slow or chip.fast)
        return chip.slow or chip.fast
    if not chip.dims or one["group"] >= devices:
        return chip.fast
    spanned = max(1, round(chip.dims * math.log(one["group"]) / math.log(devices)))
    return chip.fast * spanned / chip.dims


def complete(found: dict, price: float | None = None) -> dict:
    """What was found with its components and the model."""
    target = parse(found["target"])
    usable = target.chip.usable
    return {
        **found,
        "components": components(found),
        "usable": None if math.isinf(usable) else usable,
        "modelled": modelled(found, price),
    }


def summary(plans: list[dict]) -> str:
    """A line per plan, as a markdown table."""
    heads = ["target", "stage", "crops", "strategy", "mesh", "peak GiB", "of", "fits"]
    heads += ["TFLOP/device", "AG", "RS", "AR", "step s*", "images/s*", "compiler s"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for plan in plans:
        if "error" in plan:
            told = f"| {plan['target']} | - | - | {plan['strategy']} | refused: {plan['error']} |"
            lines.append(told + " |" * 10)
            continue
        peak = plan["memory"]["peak"] / GIB if "memory" in plan else None
        wire, form = wire_by_kind(plan), plan["closed_form"]
        model = plan["modelled"]
        cells = [
            plan["target"],
            plan["stage"],
            crops_of(plan),
            plan["strategy"],
            " x ".join(str(size) for size in plan["mesh"].values()),
            f"{peak:.2f}" if peak is not None else plan["out_of_memory"],
            f"{plan['usable'] / GIB:.1f}" if plan["usable"] else "-",
            "yes" if plan["fits"] else "no",
            f"{plan['flops'] / plan['devices'] / 1e12:.2f}",
            *(
                f"{wire.get(kind, 0) / 1e9:.2f} / {form[kind] / 1e9:.2f}" if wire else "-"
                for kind in ("all-gather", "reduce-scatter", "all-reduce")
            ),
            f"{model['step_seconds']:.3g}" if "memory" in plan else "-",
            f"{model['images_per_second']:.4g}" if "memory" in plan else "-",
            f"{plan['processor_seconds']:.0f}" if "memory" in plan else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = "AG, RS, AR: all-gather, reduce-scatter, all-reduce, GB out of a device, and those of "
    note += f"weights in closed form; compiler: processor seconds. *{MODEL_NOTE}."
    return "\n".join(lines) + "\n\n" + note


def crops_of(plan: dict) -> str:
    """Pixels of global and local crops as the student sees them, and their share of the steps."""
    crops = plan["crops"]
    share = f" ({crops['share']:.0%})" if crops["sizes"] > 1 else ""
    seen = "/".join(str(crops[name] // crops["reduction"]) for name in ("global", "local"))
    return seen + share


def wire_by_kind(plan: dict) -> dict[str, float]:
    """Bytes out of a device by kind of collective."""
    found: dict[str, float] = {}
    for one in plan.get("collectives", ()):
        found[one["kind"]] = found.get(one["kind"], 0.0) + one["wire"]
    return found


def details(plan: dict) -> str:
    """Memory by component and collectives of one plan."""
    what = f"{plan['stage']}, crops of {crops_of(plan)}"
    lines = [f"{plan['target']}, {plan['strategy']}, {what}: memory of one device"]
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
    lines.append(f"  of weights, in closed form: {form}")
    model = plan["modelled"]
    if "memory" in plan:
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

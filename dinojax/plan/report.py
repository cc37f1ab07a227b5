"""A plan as people read it: a line each, its memory and collectives, where parameters lie."""

from dinojax.plan.step_model import MODEL_NOTE, bandwidth, programs, together
from dinojax.plan.targets import GIB, parse
from dinojax.sharding.gpu_memory import VARIABLE

KINDS = ("all-gather", "reduce-scatter", "all-reduce")


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
    sent = f"{wire.get(kind, 0) / 1e9:.2f}"
    if not any("closed_form" in program for program in programs(plan)):  # of a text stage
        return sent
    return f"{sent} / {_in_closed_form(plan, kind) / 1e9:.2f}"


def crops_of(plan: dict) -> str:
    """Pixels of global and, where there are some, local crops as the student sees them, of several
    as they are cut, and their share of the steps."""
    crops = plan["crops"]
    share = f" ({crops['share']:.0%})" if crops["sizes"] > 1 else ""
    sizes = [crops[name] for name in ("global", "local") if crops[name] is not None]
    return "/".join(str(size // crops["reduction"]) for size in sizes) + share


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
    if "closed_form" not in plan:  # of a text stage
        return lines
    form = ", ".join(f"{kind} {_sent(size)}" for kind, size in plan["closed_form"].items())
    return [*lines, f"  of weights, in closed form: {form}", *_summed(plan)]


def _summed(plan: dict) -> list[str]:
    """Bytes and seconds for gradients, by choice of precision.reduce, at the plan's own pace."""
    target, sums = parse(plan["target"]), ("reduce-scatter", "all-reduce")
    found = [one for one in plan.get("collectives", ()) if one["kind"] in sums]
    seconds = sum(one["wire"] / bandwidth(target, one, plan) for one in found)
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

"""Where the time of a recipe's step goes on a GPU that is not there: kernels, bytes, FLOPs.

    python -m benchmarks.roofline --recipe vitl16_in1k --target h100:1x1 --images 64
    python -m benchmarks.roofline --recipe vitl16_in1k --set model.name=vits --json
    python -m benchmarks.roofline --check benchmarks/baselines/roofline.json

The step is compiled by the target's compiler (extra `plan`; attention=cudnn also wants the wheel
nvidia-cudnn-cu12) and its text read (dinojax/plan/kernels.py). A kernel takes the longer of its
bytes over the card's bandwidth and its FLOPs over what the card reaches: a bound without gaps
between kernels and without reuse in caches, not a measurement. Compare two programs by it, not two
cards. Offline the compiler fuses softmax and norms less than on a card (dinojax/plan/targets.py).
"""

import argparse
import collections
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from dinojax.plan import targets
from dinojax.plan.kernels import Kernel, kernels

# Share of a card's 16-bit peak that products reach, by the dtype of their operands: large ones of
# an H100, 80 % of its peak; other dtypes as they stand to that one in NVIDIA's data sheet.
RATES = {"f8": 1.4, "16": 0.8, "tf32": 0.4, "f32": 0.05}
PHASES = ("crops", "teacher", "targets", "student", "losses", "optimizer", "health")
COLUMNS = ("kernels", "TFLOP", "GB", "ms", "teacher", "forward", "backward", "rest")
BLOCKS = re.compile(r"Vit\._run|/Block")  # operations of a ViT's blocks
FILLED, SAVED, READ = "zeros for stacks", "saved into stacks", "read back from stacks"
STACKS = (FILLED, SAVED, READ)
IN_BLOCKS = {
    "product": "block products",
    "attention": "attention kernels",
    "update": SAVED,
}
# Name of a module in a block -> row of the table.
PARTS = {
    "norm1": "norms",
    "norm2": "norms",
    "mlp": "between products of the MLP",
    "attn": "around attention",
}
SMALL = 1e6  # bytes below which a fill is none of a stack
TOLERANCE = 0.02  # of a figure of --check


def compiled(recipe: str, target: str, overrides: list[str], images: int) -> dict:
    """The optimised program of a recipe's step: text, memory, and seconds of the processor."""
    machine = targets.parse(target)
    os.environ.update(targets.environment(machine))  # before jax is imported
    from dinojax import config as configs
    from dinojax.ops import attention
    from dinojax.ops.flops import compiled_memory
    from dinojax.plan import compile as plan
    from dinojax.plan import compiler_output, compilers
    from dinojax.sharding import mesh
    from dinojax.train import program

    compilers.check_compiler(machine)
    # There is no card to compare attention on: that of a run is taken as it is.
    attention.find_fault = lambda *_, **__: None
    changes = targets.replaced(overrides, plan.changed(machine, images))
    config = configs.load(recipe, changes)
    if config.model.attention == "auto":
        config = config.replaced({"model.attention": attention.ORDER["gpu"][0]})
    built = program.build(config, mesh.from_section(config.mesh, targets.devices(machine)))
    start = time.process_time()
    with mesh.use(built.layout):
        found = built.lower().compile(compiler_options=targets.OPTIONS["gpu"])
    return {
        "text": found.as_text(),
        "peak": compiled_memory(found)["peak"],
        "seconds": round(time.process_time() - start, 1),
        "versions": compiler_output.versions(),
    }


def seconds(kernel: Kernel, card: targets.Target) -> float:
    """Of one run, by the model."""
    peak, bandwidth = card.chip.flops, targets.CARDS[card.kind].bandwidth
    dtypes = [dtype for dtype in kernel.dtypes if dtype in RATES] or ["16"]
    rate = "f8" if any(x.startswith("f8") for x in kernel.dtypes) else dtypes[0]
    return max(kernel.bytes / bandwidth, kernel.flops / (RATES[rate] * peak))


def phase(op_name: str) -> str:
    """The innermost phase that train/step.py names of an operation; "rest" for none."""
    words = re.split(r"[/()]", op_name)
    return next((word for word in reversed(words) if word in PHASES), "rest")


def direction(op_name: str) -> str:
    """Which of the passes through the networks an operation belongs to."""
    if "transpose(" in op_name:
        return "backward"
    if "jvp(" in op_name:
        return "forward"
    return "teacher" if phase(op_name) == "teacher" else "rest"


def place(kernel: Kernel) -> str:
    """The row of the table that a kernel counts in."""
    name, kind = kernel.op_name, kernel.kind
    if kind == "sent":
        return "between devices"
    if kind == "fill" and kernel.written > SMALL:
        return FILLED
    if not BLOCKS.search(name):
        return "random numbers" if kind == "library" else phase(name)
    if kind in IN_BLOCKS:
        return IN_BLOCKS[kind]
    if kind == "copy" and "slice" in name:
        return READ
    words = re.split(r"[/()]", name)
    return next((told for word, told in PARTS.items() if word in words), "drop path, residual")


def summary(found: Iterable[Kernel], card: targets.Target) -> dict[str, dict]:
    """Place -> kernels, TFLOP, GB and ms of a step, also by direction."""
    rows: dict[str, dict] = collections.defaultdict(lambda: dict.fromkeys(COLUMNS, 0.0))
    for kernel in found:
        row, ms = rows[place(kernel)], 1e3 * kernel.times * seconds(kernel, card)
        row["kernels"] += kernel.times
        row["TFLOP"] += kernel.times * kernel.flops / 1e12
        row["GB"] += kernel.times * kernel.bytes / 1e9
        row["ms"] += ms
        row[direction(kernel.op_name)] += ms
    return dict(sorted(rows.items(), key=lambda item: -item[1]["ms"]))


def totals(found: Sequence[Kernel], card: targets.Target, peak: int) -> dict[str, float]:
    """What --check compares, of one step on one device."""
    rows = summary(found, card)
    products = [x for x in found if x.kind == "product"]
    in_products = sum(1e3 * x.times * seconds(x, card) for x in products)
    whole = {name: sum(row[name] for row in rows.values()) for name in COLUMNS[:4]}
    stacked = sum(rows[name]["GB"] for name in STACKS if name in rows)
    return {
        **whole,
        "products ms": in_products,
        "outside over inside products": whole["ms"] / in_products - 1.0,
        "stack share of bytes": stacked / whole["GB"],
        "peak GB": peak / 1e9,
    }


def table(rows: dict[str, dict], sums: dict[str, float]) -> str:
    """Both in Markdown."""
    lines = [
        "| where | kernels | TFLOP | GB | ms | share | teacher, forward, backward, rest ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        passes = ", ".join(f"{row[x]:.1f}" for x in COLUMNS[4:])
        share = 100 * row["ms"] / sums["ms"]
        lines.append(
            f"| {name} | {row['kernels']:.0f} | {row['TFLOP']:.2f} | {row['GB']:.1f} | "
            f"{row['ms']:.2f} | {share:.1f} % | {passes} |"
        )
    told = ", ".join(f"{name} {value:,.4g}" for name, value in sums.items())
    return "\n".join([*lines, "", told])


def differences(now: dict[str, float], before: dict[str, float]) -> list[str]:
    """Figures that are worse by more than TOLERANCE, or better: then the table is made anew."""
    return [
        f"{name} was {before[name]:.5g}, is {now[name]:.5g}"
        for name in before
        if abs(now[name] - before[name]) > TOLERANCE * abs(before[name])
    ]


def measure(recipe: str, target: str, overrides: list[str], images: int) -> dict:
    """A row of the committed table: what was asked, with which compiler, and its totals."""
    made, card = compiled(recipe, target, overrides, images), targets.parse(target)
    found = kernels(made["text"])
    asked = {
        "recipe": recipe,
        "target": target,
        "overrides": overrides,
        "images": images,
    }
    return {
        **asked,
        "versions": made["versions"],
        "compile_seconds": made["seconds"],
        "totals": totals(found, card, made["peak"]),
        "rows": summary(found, card),
        "text": made["text"],
    }


def check(path: Path) -> int:
    """The rows of a table again; the number of differences, each told.

    A row that another version of a compiler made is told, and not compared.
    """
    told, count = [], 0
    for row in json.loads(path.read_text()):
        now = measure(*(row[key] for key in ("recipe", "target", "overrides", "images")))
        name = f"{row['recipe']} {' '.join(row['overrides'])} {row['target']}"
        if now["versions"] != row["versions"]:
            told.append(f"{name}: made by {row['versions']}, here are {now['versions']}")
            continue
        found = differences(now["totals"], row["totals"])
        told += [f"{name}: {text}" for text in found]
        count += len(found)
    print("\n".join(told) or f"{path}: nothing changed")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="vitl16_in1k", help="a recipe file or packaged name")
    parser.add_argument("--target", default="h100:1x1", help="such as h200:1x8")
    parser.add_argument("--images", type=int, default=64, help="on a device")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="a JSON line in place of a table")
    parser.add_argument("--text", type=Path, metavar="FILE", help="keep the compiled program there")
    parser.add_argument("--save", type=Path, metavar="FILE", help="add to what --check compares")
    parser.add_argument("--check", type=Path, metavar="FILE", help="make the rows of --save again")
    args = parser.parse_args()
    if args.check:
        sys.exit(bool(check(args.check)))
    found = measure(args.recipe, args.target, args.set, args.images)
    text, rows = found.pop("text"), found.pop("rows")
    if args.text:
        args.text.write_text(text)
    print(json.dumps({**found, "rows": rows}) if args.json else table(rows, found["totals"]))
    if args.save:
        kept = json.loads(args.save.read_text()) if args.save.exists() else []
        same = ("recipe", "target", "overrides", "images")
        kept = [row for row in kept if any(row[key] != found[key] for key in same)]
        args.save.write_text(json.dumps([*kept, found], indent=1) + "\n")


if __name__ == "__main__":
    main()

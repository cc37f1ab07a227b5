"""Recipes x targets x strategies in one table, from plans; and against a committed table.

    python -m benchmarks.sharding --recipes tiny --targets cpu:8
    python -m benchmarks.sharding --recipes vitl16_in1k --targets h100:4x8 v5p:2x4x4 --markdown
    python -m benchmarks.sharding --check benchmarks/baselines/sharding.json
    python -m benchmarks.sharding --recipes vit7b16 --set model.remat=full --markdown \\
        --targets v5p:4x8x8 v6e:16x16 tpu7x:4x4x8 h100:32x8 --strategies fsdp hsdp:8 hsdp:16 \\
        --timeout 14400 --keep .plans

A strategy may name its copies of the weights: hsdp:8 is mesh.replicas=8. With --keep what a
compiler found is a file as soon as it is found, and a program is never compiled twice: a table that
was interrupted goes on with its next row, and rows are not made again until the program, the
compiler or the code of plans changes. Every row is told on stderr when it is done.

A JSON line per plan, each as `dinojax plan --json` gives it; --markdown prints a table instead. A
step that does not fit and a mesh that cannot be are rows too. --check plans the rows of a table of
--save again and fails if FLOPs, peak or bytes of any kind of collective grew by more than 2 %, or
shrank by more, which wants a new table: --remake plans its rows again and writes it.
"""

import argparse
import json
import sys
from pathlib import Path

from dinojax.cli import plan as cli_plan
from dinojax.config import ConfigError
from dinojax.plan import report as reports
from dinojax.plan import step_model
from dinojax.plan.targets import replaced
from dinojax.sharding import axes

TOLERANCE = 0.02


def plan(
    recipe: str,
    target: str,
    overrides: list[str],
    images: int | None = None,
    *,
    timeout: int = 3600,
    keep: Path | None = None,
) -> dict:
    """A plan, or why there is none. mesh.strategy is one of the overrides.

    images: on a device, None = the recipe's batch; timeout: seconds; keep: folder of programs.
    """
    try:
        folder = str(keep.absolute()) if keep else None
        found = cli_plan.one(recipe, target, overrides, images=images, timeout=timeout, keep=folder)
        return {**step_model.complete(found), "images_per_device": images}
    except ConfigError as error:
        strategy = next(x.partition("=")[2] for x in overrides if x.startswith("mesh.strategy="))
        return {"recipe": recipe, "target": target, "strategy": strategy, "error": str(error)}


def strategy_keys(name: str) -> list[str]:
    """Overrides of a strategy: `hsdp`, or `hsdp:8` with its copies of the weights."""
    strategy, _, replicas = name.partition(":")
    return [f"mesh.strategy={strategy}"] + ([f"mesh.replicas={replicas}"] if replicas else [])


def measures(plan: dict) -> dict[str, float]:
    """What is compared: no seconds, because those of a plan are a model's."""
    found = {"flops": plan["flops"], "peak": plan.get("memory", {}).get("peak", 0)}
    wire = reports.wire_by_kind(plan)
    return found | {f"wire {kind}": wire[kind] for kind in sorted(wire)}


def differences(now: dict, before: dict) -> list[str]:
    """What a plan has changed by more than TOLERANCE, in words."""
    ours, theirs = measures(now), before["measures"]
    return [
        f"{before['recipe']} {before['target']} {before['strategy']}: {name} was "
        f"{theirs.get(name, 0):.6g}, is {ours.get(name, 0):.6g}"
        for name in sorted({*ours, *theirs})
        if abs(ours.get(name, 0) - theirs.get(name, 0)) > TOLERANCE * theirs.get(name, 0)
    ]


def kept(plan: dict) -> dict:
    """A row of a committed table: what was asked, what is compared, and with which compiler."""
    keys = ("recipe", "target", "strategy", "overrides", "images_per_device", "versions")
    asked = {key: plan[key] for key in keys}
    return {**asked, "measures": measures(plan)}


def save(path: Path, plans: list[dict]) -> None:
    """Write the table that `check` compares."""
    rows = [kept(found) for found in plans if "error" not in found]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def again(row: dict) -> dict:
    """The plan of a row of a table, made now."""
    return plan(row["recipe"], row["target"], row["overrides"], row["images_per_device"])


def check(path: Path) -> int:
    """Plan the rows of a table again; the number of differences, each told."""
    told: list[str] = []
    for row in json.loads(path.read_text()):
        now = again(row)
        told += [now["error"]] if "error" in now else differences(now, row)
    print("\n".join(told) or f"{path}: nothing changed")
    return len(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["tiny"])
    parser.add_argument("--targets", nargs="+", default=["cpu:8"])
    parser.add_argument(
        "--strategies", nargs="+", default=list(axes.TABLE), metavar="NAME[:COPIES]"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds for each compile")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="of what compilers found")
    parser.add_argument("--markdown", action="store_true", help="a table in place of JSON lines")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep what --check compares")
    parser.add_argument("--check", type=Path, metavar="FILE", help="a table of --save")
    parser.add_argument("--remake", type=Path, metavar="FILE", help="the same rows, planned now")
    args = parser.parse_args()
    if args.remake:
        return save(args.remake, [again(row) for row in json.loads(args.remake.read_text())])
    if args.check:
        sys.exit(bool(check(args.check)))
    plans = []
    for recipe in args.recipes:
        for target in args.targets:
            for strategy in args.strategies:
                overrides = replaced(args.set, strategy_keys(strategy))
                limits = {"timeout": args.timeout, "keep": args.keep}
                plans.append(plan(recipe, target, overrides, **limits))
                if args.markdown:
                    print(reports.summary(plans[-1:]).splitlines()[2], file=sys.stderr, flush=True)
                else:
                    print(json.dumps(plans[-1]), flush=True)
    if args.markdown:
        print(reports.summary(plans))
    if args.save:
        save(args.save, plans)


if __name__ == "__main__":
    main()

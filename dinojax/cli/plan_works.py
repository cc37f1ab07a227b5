"""`dinojax plan curate`: what a curation takes on a machine one does not have."""

import argparse
import json
import sys
from typing import Any

from dinojax.cli.parser import Parser
from dinojax.config import ConfigError
from dinojax.plan import compilers, targets, works_report

CURATE = """\
Time, bytes and memory of every step of `dinojax curate` on a machine you do not have: its programs
are compiled for the target at the shapes they would have there, with a closed form beside each.
Every image is taken to stay after deduplication. --set takes the keys of a curation's recipe.

examples:
  dinojax plan curate --images 1e9 --width 1024 --levels 20000000,800000,80000,8000 \\
      --target v5p:8x8x4 --set kmeans.splits=[4000,0,0,0]
  dinojax plan curate --images 1e6 --width 384 --levels 10000,500 --target cpu:8
"""
TIMEOUT = 3600  # seconds
MODULES = {"curate": "dinojax.plan.curation"}


def add(plan: argparse.ArgumentParser, parser: Parser) -> None:
    """The commands below `plan`."""
    commands = plan.add_subparsers(metavar="COMMAND")
    curate = parser.command(commands, "curate", "of the steps of a curation", CURATE, _curate)
    curate.add_argument("--images", metavar="N", type=_count, required=True, help="1e9 is taken")
    curate.add_argument("--width", metavar="D", type=int, required=True, help="of the embeddings")
    curate.add_argument(
        "--levels",
        metavar="K,K,...",
        type=_levels,
        required=True,
        help="clusters of each, the lowest and largest first",
    )
    curate.add_argument("--model", metavar="RECIPE", help="whose network embeds; default: by width")
    curate.add_argument("--size", type=int, default=256, help="pixels of its images; default: 256")
    curate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the curation's recipe, kmeans.iterations=20; may be given many times",
    )
    _shared(curate)


def _shared(command: argparse.ArgumentParser) -> None:
    command.add_argument("--target", metavar="KIND:SIZES", required=True, help="as of plan")
    command.add_argument(
        "--timeout", type=int, default=TIMEOUT, metavar="S", help=f"default: {TIMEOUT} seconds"
    )
    command.add_argument("--json", action="store_true", help="a JSON object, for programs")


def _count(text: str) -> int:
    try:
        number = float(text)
        whole = int(number)
    except (ValueError, OverflowError):
        whole = number = 0
    if number != whole or whole < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 on, such as 1e9")
    return whole


def _levels(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _check(args: argparse.Namespace, given: list[str]) -> None:
    """Raise ConfigError for what cannot be, before anything is compiled."""
    if "kmeans.clusters" in given:
        raise ConfigError("kmeans.clusters is what --levels says; give --levels alone.")
    below, of = args.images, f"the {args.images:,} images"
    for number, clusters in enumerate(args.levels, start=1):
        if clusters >= below:
            raise ConfigError(
                f"--levels: level {number} has {clusters:,} clusters of {of}; every level needs "
                "fewer than what is below it, such as --levels 10000,500."
            )
        below, of = clusters, f"the {clusters:,} of level {number}"
    for name in ("width", "size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: give a number from 1 on.")


def _curate(args: argparse.Namespace) -> None:
    given = [setting.partition("=")[0].strip() for setting in args.set]
    _check(args, given)
    features = [] if "embed.features" in given else ["embed.features=cls"]
    overrides = [f"kmeans.clusters={args.levels}", *features, *args.set]
    asked = {"images": args.images, "width": args.width, "overrides": overrides}
    asked |= {"model": args.model, "size": args.size}
    doing = f"embed, dedup and k-means of {len(args.levels)} levels over {args.images:,} images"
    found = planned("curate", args, asked, doing=f"compiling {doing}")
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"plan of a curation, {found['images']:,} images, {found['width']} wide "
        f"({found['model']}), on {found['target']}: {found['devices']} devices of "
        f"{found['hosts']} hosts\n"
    )
    print(*works_report.table(found), "", sep="\n")
    print(*works_report.totals(found), "", *works_report.notes(found), *_advice(found), sep="\n")


def _advice(found: dict[str, Any]) -> list[str]:
    """How a level that fits nowhere may fit."""
    splits = list(found["splits"])
    bad = {row["step"] for row in found["rows"] if not row["fits"]}
    for number, (clusters, split) in enumerate(zip(found["levels"], splits, strict=True), start=1):
        if f"k-means {number}" in bad and not split:
            splits[number - 1] = round(clusters**0.5)
    if splits == found["splits"]:
        return []
    told = ",".join(map(str, splits))
    return [f"Try two steps where centres do not fit: --set kmeans.splits=[{told}]"]


def planned(command: str, args: argparse.Namespace, asked: dict, *, doing: str) -> dict[str, Any]:
    """What the module of a command finds, in a process that sees the target's devices.

    doing: what stderr is told at once, and how long it takes, such as "compiling k-means".
    """
    from dinojax.cli import plan  # which adds these commands

    target = targets.parse(args.target)
    compilers.check_compiler(target)
    doing = f"{doing} for {target.name}"
    print(doing, file=sys.stderr, flush=True)
    found, _ = plan.process(
        *(MODULES[command], target.name, {"target": target.name, **asked}),
        timeout=args.timeout,
        doing=doing,
    )
    return found

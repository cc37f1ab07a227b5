"""`dinojax plan`: a process per compile."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dinojax import config as configs
from dinojax.cli import plan_works
from dinojax.cli.parser import Parser
from dinojax.config import ConfigError
from dinojax.plan import compilers, partitioner_log, step_model, targets, waiting
from dinojax.plan import report as reports
from dinojax.plan.targets import replaced
from dinojax.sharding import axes

PLAN = """\
With --words: what every stage of a recipe will do, in sentences; nothing is run. It tells what a
stage starts from, crops, losses and when they switch on, anchors, learning rates after scaling,
and how low the losses can fall.

With --config and --target: what a step needs on a machine you do not have: memory, FLOPs, bytes
between devices, and a modelled time. The compiler of the target runs here; TPU and GPU targets
need the extra `plan`. Of a recipe with students every program of a step is planned, once with all
of them in turn and once with each on devices of its own, unless distill.place says which.

targets: v5e:4x4 v5p:4x8x8 v6e:16x16 tpu7x:4x4x8 (chips), h100:32x8 h200:4x8 b200:1x8 a100:1x8
l40s:1x4 rtx4090:1x2 (machines x GPUs), cpu:8 (devices). Also v5e-64, v6e-256 (chips) and v5p-128
(TensorCores, two per chip), as slices are named; a100:8, 8xh100, l40s

examples:
  dinojax plan --words configs/vit7b16.py
  dinojax plan --words vitl16_in1k --set batch_size=256 --images 1281167
  dinojax plan --config tiny --target cpu:8 --strategy all
  dinojax plan --config vitl16_in1k --target h100:4x8
  dinojax plan --config vit7b16 --target v5p:4x8x8 --strategy fsdp --set model.remat=full
  dinojax plan --config vit7b16 --stage all --target v5p:4x8x8 --set model.remat=full
  dinojax plan --config vits16 --target v6e:4x4 --set distill.enabled=True \\
      --set distill.teacher=random:vitl16
  dinojax plan --config distill_7b --target h100:30x8 --set distill.teacher=random:vit7b16
"""
# Changes tried when a step does not fit, cheapest first, with what they cost.
CHANGES = (
    ("mesh.strategy=fsdp",),  # more bytes between devices
    ("model.remat=dots",),  # some of the forward pass again
    ("model.remat=full",),  # all of the forward pass again
    ("accumulate=2",),  # weights gathered twice
    ("mesh.strategy=fsdp", "model.remat=full"),
    ("mesh.strategy=fsdp", "model.remat=full", "accumulate=2"),
    ("mesh.strategy=fsdp", "model.remat=full", "accumulate=4"),
)
ENOUGH = 3  # changes that fit
PLACES = ("turn", "apart")  # of distill.place
# Options of a plan that is compiled.
COMPILED = (
    *("target", "stage", "student", "strategy", "images_per_device", "price", "no_changes"),
    *("timeout", "json"),
)
TIMEOUT = 3600  # seconds


def add_verb(commands, parser: Parser) -> None:
    def run_either(args: argparse.Namespace) -> None:
        if args.words is None and args.config is None:
            plan.error("give --words RECIPE, --config RECIPE or a command such as curate.")
        if args.words is None:
            run(args)
            return
        given = vars(args)
        if unread := [n for n in COMPILED if given[n] is not None and given[n] is not False]:
            flag = unread[0].replace("_", "-")
            raise ConfigError(f"--{flag} goes with --config; --words takes --set and --images.")
        parser.program("plan --words")(args.words, args.set, args.images)

    plan = parser.command(
        commands, "plan", "what a recipe will do, and what it will take", PLAN, run_either
    )
    options(plan, parser.set_option)
    plan_works.add(plan, parser)


def told_replicated(found: list[str]) -> list[str]:
    """In words."""
    if not found:
        return ["The compiler makes nothing else whole on every device."]
    start = "The compiler makes whole on every device, on the way from one sharding to another:"
    return [start, *(f"! {line}" for line in found)]


def student_option(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--student", metavar="NAME", action="append", help=meaning)


def options(parser: argparse.ArgumentParser, set_option) -> None:
    """What `plan` takes."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--words", metavar="RECIPE", help="say it in words: a recipe, file or name")
    what.add_argument("--config", metavar="RECIPE", help="or a run: compile it for --target")
    set_option(parser)
    parser.add_argument("--images", type=int, metavar="N", help="in the data, to tell epochs")
    parser.add_argument("--target", metavar="KIND:SIZES", help="see above")
    parser.add_argument("--stage", metavar="NAME", help="of the recipe, or all; default: its first")
    student_option(parser, "of a recipe with students these alone; may be given many times")
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        help=f"{', '.join(axes.TABLE)} or all; default: mesh.strategy of the recipe",
    )
    parser.add_argument(
        "--images-per-device", type=int, metavar="N", help="in place of the recipe's batch"
    )
    parser.add_argument("--price", type=float, metavar="P", help="of a device hour, any currency")
    parser.add_argument("--no-changes", action="store_true", help="seek none if it does not fit")
    parser.add_argument(
        "--timeout", type=int, metavar="S", help=f"for each compile; default: {TIMEOUT} seconds"
    )
    parser.add_argument("--json", action="store_true", help="a JSON list, for programs")


def run(args: argparse.Namespace) -> None:
    """Plan and print. Raises ValueError for a target, strategy or recipe that cannot be."""
    if args.target is None:
        raise ConfigError("--config is planned for a --target, such as cpu:8 or v5p:4x8x8.")
    if args.images is not None:
        raise ConfigError("--images goes with --words; of a step it is --images-per-device.")
    target = targets.parse(args.target)
    args.target = target.name
    compilers.check_compiler(target)
    # What is wrong is told before any compiling.
    wanted = [load(args, stage) for stage in _stages(args)]
    plans = []
    for config in wanted:
        args.stage = config.stage if len(wanted) > 1 else args.stage
        ways = [[*one, *two] for one in _strategies(args.strategy) for two in _places(args, config)]
        for way in ways:
            overrides = replaced(args.set, way)
            for args.size in range(1 + len(config.crops.more_rates)):
                plans.append(_plan(args, overrides, way, alone=len(ways) == 1))
    if args.strategy != "all" and all("error" in plan for plan in plans):
        raise ConfigError("\n".join(dict.fromkeys(plan["error"] for plan in plans)))
    if args.json:
        print(json.dumps(plans, indent=1))
        return
    for plan in plans:
        if "error" in plan:
            print(f"{plan['target']}, {plan['strategy']}: refused: {plan['error']}\n")
        else:
            print(reports.details(plan), *told_replicated(plan["replicated"]), "", sep="\n")
    print(reports.summary(plans))


def _stages(args) -> tuple[str | None, ...]:
    """Those to plan."""
    return configs.stage_names(args.config) if args.stage == "all" else (args.stage,)


def load(args, stage: str | None) -> configs.Config:
    """The config of a stage, of the first student if there are students."""
    if not configs.student_names(args.config):
        if args.student:
            raise ConfigError(f"--student {args.student[0]}: {args.config} has no STUDENTS.")
        return configs.load(args.config, args.set, stage=stage)
    found = configs.pick_students(configs.load_students(args.config, args.set), args.student)
    args.student = list(found)
    return configs.pick(next(iter(found.values())), stage)


def _places(args, config) -> list[list[str]]:
    """Overrides for each of the ways in which students may lie on the devices, as a run would."""
    if not args.student:
        return [[]]
    asked = config.distill.place
    if len(args.student) == 1 and asked != "apart":
        return [["distill.place=turn"]]
    return [[f"distill.place={place}"] for place in (PLACES if asked == "auto" else [asked])]


def _strategies(asked: str | None) -> list[list[str]]:
    if asked is None:
        return [[]]
    if asked not in (*axes.TABLE, "all"):
        raise ConfigError(f"--strategy {asked!r} is not one of {', '.join(axes.TABLE)}, all.")
    return [[f"mesh.strategy={name}"] for name in (axes.TABLE if asked == "all" else [asked])]


def _plan(args, overrides: list[str], way: list[str], *, alone: bool) -> dict:
    try:
        found = _one(args, overrides)
    except ConfigError as error:
        if alone:
            raise
        name = ", ".join(text.partition("=")[2] for text in way)
        return {"target": args.target, "strategy": name, "error": str(error)}
    plan = step_model.complete(found, args.price)
    if not plan["fits"] and not args.no_changes:
        plan["changes"] = list(_changes(args, overrides))
    return plan


def _changes(args, overrides: list[str]) -> Iterator[dict]:
    """The first changes that fit, by modelled time."""
    fitting: list[dict] = []
    for change in CHANGES:
        try:
            found = _one(args, replaced(overrides, change))
        except ConfigError:
            continue  # accumulate does not divide, or the recipe excludes it
        if found["fits"]:
            fitting.append(step_model.complete({**found, "overrides": list(change)}, args.price))
        if len(fitting) == ENOUGH:
            break
    yield from sorted(fitting, key=lambda plan: plan["modelled"]["step_seconds"])


def _one(args, overrides: list[str]) -> dict:
    return one(
        args.config,
        args.target,
        overrides,
        images=args.images_per_device,
        stage=args.stage,
        size=args.size,
        timeout=TIMEOUT if args.timeout is None else args.timeout,
        students=args.student,
    )


def one(
    recipe_name: str,
    target: str,
    overrides: list[str],
    *,
    images: int | None = None,
    stage: str | None = None,
    size: int = 0,
    timeout: int = TIMEOUT,
    keep: str | None = None,
    students: Sequence[str] | None = None,
) -> dict:
    """What plan/one.py finds, or family_plan.py of students, in a process of its own.

    Raises ConfigError with its message.

    Without `keep` also `replicated`, what the compiler warns of (compilers.py); of a program that
    need not be compiled nothing is known.
    """
    asked: dict = {"recipe": recipe_name, "target": target, "overrides": overrides}
    asked |= {"images": images, "stage": stage, "size": size, "keep": keep}
    asked |= {"students": list(students)} if students else {}
    module = "dinojax.plan.students" if students else "dinojax.plan.compile"
    found, log = process(module, target, asked, timeout=timeout)
    return found if keep else {**found, "replicated": partitioner_log.replicated(log)}


def process(
    module: str, target: str, asked: dict, *, timeout: int = TIMEOUT, doing: str = ""
) -> tuple[Any, str]:
    """The JSON that a module of ours prints and what it logs, where jax sees the target's devices.

    The compiler's warnings are wanted, so no program comes from a cache. doing: what who waits is
    told, "" = what is asked.
    """
    machine = targets.parse(target)
    environment = os.environ | targets.environment(machine)
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    root = str(Path(__file__).parent.parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    what = ", ".join([asked["recipe"], *asked["overrides"][-1:]]) if "recipe" in asked else module
    try:
        code, out, log = waiting.run(
            [sys.executable, "-m", module, json.dumps(asked)],
            environment=environment,
            timeout=timeout,
            doing=doing or f"compiling {what} for {machine.name}",
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{target}: not compiled within --timeout {timeout} seconds.") from error
    if code:
        raise RuntimeError(f"compiling for {target} failed:\n{log[-4000:]}")
    found = json.loads(out.splitlines()[-1])
    if isinstance(found, dict) and "refused" in found:
        raise ConfigError(found["refused"])
    return found, log

"""`dinojax train` and `dinojax distill`."""

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

from dinojax.cli import processes
from dinojax.cli.parser import Parser
from dinojax.config import load_stages, load_students, of_run, pick, pick_students
from dinojax.distributed import cluster
from dinojax.distributed.interrupt import leaving

# Flag of `train` after --accept- -> what it accepts.
ACCEPT = {
    "new-data": "continue although the images changed; from here on their order differs",
    "new-config": "continue although the config changed; steps already done stay as they are",
}

TRAIN = """\
Train a recipe. RUN receives config.json, log.txt, metrics.jsonl and checkpoints/. A RUN that
exists continues from its last checkpoint if its config agrees, else the command says what differs.
--run alone continues with the config that the run has; --config OTHER_RUN takes that of another.

examples:
  dinojax train --config tiny --run runs/tiny
  dinojax train --run runs/tiny
  dinojax train --config configs/vitl16_in1k.py --run runs/vitl16 \\
      --set data.path=/data/imagenet/train --set batch_size=1024 --set optim.clip=none

Several processes, one per host, each told who it is; docs/hosts.md and launch/ have more:
  dinojax train --config vitl16_in1k --run /shared/vitl16 --coordinator host0:8476 \\
      --num-processes 4 --process-id 0
  srun dinojax train --config vitl16_in1k --run /shared/vitl16 --cluster slurm
"""
DISTILL = """\
Train the students of a recipe from one frozen teacher, whose forward pass is taken once per step.
Each has a run directory of its own, RUN/STUDENT, that every other command takes. A RUN that exists
continues, with --run alone too; students may join and leave (docs/distillation.md).

examples:
  dinojax distill --config configs/distill_tiny.py --run runs/family --set distill.teacher=runs/tiny
  dinojax distill --config configs/distill_7b.py --run runs/family \\
      --set distill.teacher=runs/vit7b --set data.path=/data/images --set vits:distill.share=8
"""


def add_verb(commands: Any, parser: Parser) -> None:
    train = parser.command(
        commands, "train", "train a recipe, or continue a run", TRAIN, _train(parser.program)
    )
    distill = parser.command(
        commands, "distill", "many students of one teacher", DISTILL, _distill(parser.program)
    )
    for command in (train, distill):
        parser.config_options(command, required=False, absent="; default: that of the run")
        command.add_argument(
            "--epochs",
            type=float,
            metavar="E",
            help="passes over the images, instead of num_steps; schedules keep their shares",
        )
        command.add_argument(
            "--stage", metavar="NAME", help="run this stage alone; default: all that are not done"
        )
        command.add_argument(
            "--run", metavar="DIR", required=True, help="run directory, made if absent"
        )
        for name, meaning in ACCEPT.items():
            command.add_argument(f"--accept-{name}", action="store_true", help=meaning)
        command.add_argument(
            "--max-wall", metavar="3h50m", help="save and end with exit code 75 before this is up"
        )
        processes.add(command)
    distill.add_argument(
        "--student", metavar="NAME", action="append", help="this one alone; may be given many times"
    )


def _train(program: Callable[[str], Callable]) -> Callable:
    def run(args: argparse.Namespace) -> None:
        recipe = args.config or of_run(args.run)
        found = load_stages(recipe, _with_epochs(args), measure=_measure(args))
        if args.stage is not None:
            pick(found, args.stage)
        _start(lambda: program("train"), found, args)

    return run


def _distill(program: Callable[[str], Callable]) -> Callable:
    def run(args: argparse.Namespace) -> None:
        recipe = args.config or of_run(args.run)
        found = load_students(recipe, _with_epochs(args), measure=_measure(args))
        _start(lambda: program("distill"), pick_students(found, args.student), args)

    return run


def _with_epochs(args: argparse.Namespace) -> list[str]:
    """What --set gives, and --epochs as one of them."""
    return args.set + ([] if args.epochs is None else [f"epochs={args.epochs}"])


def _measure(args: argparse.Namespace) -> Callable:
    """Counts images and asks for devices, where a recipe wants to know: imports jax only then."""

    def measure(values):
        place = cluster.find(args.coordinator, args.num_processes, args.process_id, args.cluster)
        alone = place is None or place.count == 1
        return importlib.import_module("dinojax.train.measure").measure(values, alone=alone)

    return measure


def _start(program: Callable[[], Callable], found, args: argparse.Namespace) -> None:
    """A program that trains, in as many processes as it was started in."""
    began, wall = time.monotonic(), processes.seconds(args.max_wall)
    accept = [name for name in ACCEPT if getattr(args, f"accept_{name.replace('-', '_')}")]
    with leaving():  # until the run takes signals itself; importing jax takes seconds
        function = program()
        importlib.import_module("dinojax.monitor.compilation").keep_programs()
        with processes.joined(args):
            left = None if wall is None else wall - (time.monotonic() - began)
            function(found, run=args.run, accept=accept, stage=args.stage, max_wall=left)

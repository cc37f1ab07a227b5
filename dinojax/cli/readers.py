"""Verbs that look at a run: `dinojax doctor`, `report`, `replay`, and `ckpt inspect`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dinojax.cli.parser import Parser

INSPECT = """\
What checkpoints hold, on a machine without the accelerator: step, position, devices, versions,
config keys that differ from configs/keys/, complete or torn. One STEP also lists its arrays.
Only metadata is read, so that damage inside an array is not seen.

examples:
  dinojax ckpt inspect runs/tiny
  dinojax ckpt inspect runs/tiny/checkpoints/pretrain
  dinojax ckpt inspect runs/tiny/checkpoints/pretrain/1000 --json
"""
DOCTOR = """\
Say in words what is wrong with a run and what to do. Reads its files alone: works on any machine,
while the run is under way or after. docs/health.md says what normal looks like. The exit
code is 0 whatever is found, 2 if the run cannot be read.

examples:
  dinojax doctor runs/vitl16
"""
REPORT = """\
Write RUN/report.html anew: config, curves, pictures, findings and incidents in one file. Training
writes it at every checkpoint.

examples:
  dinojax report runs/vitl16
"""
REPLAY = """\
Take a step that was not finite again and name the weights, gradients or images it begins in.

examples:
  dinojax replay runs/vitl16/autopsy/48211
"""


def add_verb(commands: Any, parser: Parser) -> None:
    for name, summary, description, folder in (
        ("doctor", "say what is wrong with a run", DOCTOR, "RUN"),
        ("report", "write report.html of a run", REPORT, "RUN"),
        ("replay", "take a step that was not finite again", REPLAY, "RUN/autopsy/STEP"),
    ):
        run = _on_folder(parser.program, name)
        reader = parser.command(commands, name, summary, description, run)
        reader.add_argument("folder", metavar=folder, type=Path, help="a folder")
    saved = parser.group(commands, "ckpt", "look at checkpoints", INSPECT)
    run = _inspect(parser.program)
    inspect = parser.command(saved, "inspect", "what checkpoints hold", INSPECT, run)
    inspect.add_argument("path", metavar="PATH", help="a run, its checkpoints/STAGE, or one STEP")
    inspect.add_argument("--json", action="store_true", help="a JSON list, for programs")
    inspect.set_defaults(path_option="PATH")


def _on_folder(program: Callable[[str], Callable], name: str) -> Callable:
    """The command of a program that takes one folder."""

    def run(args: argparse.Namespace) -> None:
        program(name)(args.folder)

    return run


def _inspect(program: Callable[[str], Callable]) -> Callable:
    def run(args: argparse.Namespace) -> None:
        program("ckpt inspect")(Path(args.path), args.json)

    return run

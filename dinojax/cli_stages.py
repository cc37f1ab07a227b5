"""Commands about stages: `dinojax plan --words` and `dinojax gram pick`."""

import argparse
from pathlib import Path

WORDS = """\
Say what every stage of a recipe will do: what it starts from, crops, losses and when they switch
on, anchors, learning rates after scaling, how low the losses can fall. Nothing is run.

examples:
  dinojax plan --words configs/vit7b16.py
  dinojax plan --words vitl16_in1k --set batch_size=256 --images 1281167
"""
PICK = """\
Score all checkpoints of a run by a dense metric and recommend the anchor of a Gram stage, or none.
The metric: which of four images side by side a patch belongs to (dinojax/STAGES.md).

examples:
  dinojax gram pick runs/vitl16
  dinojax gram pick runs/vitl16 --set knn.bank=/data/train --set knn.query=/data/val
"""


def add(plan, gram, command, *, program, set_option) -> None:
    """`--words` of the parser of `plan`, and `gram pick`.

    gram is the group's commands, the rest are helpers of cli.py.
    """
    plan.add_argument("--words", metavar="RECIPE", help="what it will do, in words; no --target")
    plan.add_argument("--images", type=int, metavar="N", help="--words: in the data, for epochs")
    otherwise = plan.get_default("run_command")
    words = _words(program)
    plan.set_defaults(run_command=lambda args: (words if args.words else otherwise)(args))

    pick = command(gram, "pick", "recommend an anchor", PICK, _pick(program))
    pick.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    pick.add_argument("--mosaics", type=int, default=128, metavar="N", help="default: 128")
    set_option(pick)


def _words(program):
    def run(args: argparse.Namespace) -> None:
        program("plan")(args.words, args.set, args.images)

    return run


def _pick(program):
    def run(args: argparse.Namespace) -> None:
        program("gram pick")(args.run, args.set, num=args.mosaics)

    return run

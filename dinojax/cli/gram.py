"""A command about stages: `dinojax gram pick`."""

import argparse
from pathlib import Path

from dinojax.cli.parser import Parser

PICK = """\
Score all checkpoints of a run by a dense metric and recommend the anchor of a Gram stage, or none.
The metric: which of four images side by side a patch belongs to (docs/stages.md).

examples:
  dinojax gram pick runs/vitl16
  dinojax gram pick runs/vitl16 --set knn.bank=/data/train --set knn.query=/data/val
"""


def add_verb(commands, parser: Parser) -> None:
    gram = parser.group(commands, "gram", "help with Gram anchoring", PICK)
    pick = parser.command(gram, "pick", "recommend an anchor", PICK, _pick(parser.program))
    pick.add_argument("run", metavar="RUN", type=Path, help="a run directory")
    pick.add_argument("--mosaics", type=int, default=128, metavar="N", help="default: 128")
    parser.set_option(pick)


def _pick(program):
    def run(args: argparse.Namespace) -> None:
        program("gram pick")(args.run, args.set, num=args.mosaics)

    return run

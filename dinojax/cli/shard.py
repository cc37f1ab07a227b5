"""`dinojax shard report`: where arrays live, told by a process that sees the target's devices."""

import argparse
import json
from typing import Any

from dinojax.cli import plan
from dinojax.cli.parser import Parser
from dinojax.config import ConfigError
from dinojax.plan import report as reports
from dinojax.plan import targets

SHARD = """\
Where every parameter lives: its axes, its sharding and its bytes on one device. Large ones that
are whole on every device are marked. Nothing is compiled but with --compile: then the step is, for
as many simulated CPU devices, and what its compiler makes whole on every device on the way from one
sharding to another (XLA calls it involuntary full rematerialization) is told.

examples:
  dinojax shard report --config vitl16_in1k --devices 8
  dinojax shard report --config tiny --devices 8 --set mesh.strategy=fsdp --compile
  dinojax shard report --config vit7b16 --devices 256 --set mesh.strategy=hsdp
  dinojax shard report --config distill_7b --student vitl --devices 64 \\
      --set distill.teacher=random:vit7b16
"""


def add_verb(commands: Any, parser: Parser) -> None:
    shard = parser.group(commands, "shard", "where arrays live on devices", SHARD)
    report = parser.command(shard, "report", "where every parameter lives", SHARD, _report)
    parser.config_options(report, required=True)
    plan.student_option(report, "of a recipe with students, which one")
    report.add_argument("--devices", type=int, metavar="N", help="default: mesh.devices or 1")
    report.add_argument("--compile", action="store_true", help="and tell what becomes whole")
    report.add_argument(
        "--json",
        action="store_true",
        help="a JSON list; with --compile an object of `parameters` and `replicated`",
    )


def _report(args: argparse.Namespace) -> None:
    """Print where the student's parameters live. Raises ValueError if they cannot be sharded."""
    config = plan.load(args, None)
    if args.student and len(args.student) > 1:
        raise ConfigError(f"give --student one of {', '.join(args.student)}.")
    number = args.devices or config.mesh.devices or 1
    target = f"cpu:{number}"
    name = args.student[0] if args.student else None
    asked = {"recipe": args.config, "overrides": args.set, "student": name}
    rows, _ = plan.process("dinojax.plan.shards", target, asked)
    if not args.compile:
        print(json.dumps(rows, indent=1) if args.json else reports.shards(rows, number))
        return
    alone = targets.replaced(args.set, ["distill.place=turn"] if name else [])
    found = plan.one(args.config, target, alone, students=args.student)["replicated"]
    if args.json:
        print(json.dumps({"parameters": rows, "replicated": found}, indent=1))
    else:
        print(reports.shards(rows, number), *plan.told_replicated(found), sep="\n")

"""`dinojax eval NAME` and `dinojax eval list`: one command for each row of the table."""

import argparse
from collections.abc import Callable
from pathlib import Path

from dinojax.cli.parser import Parser
from dinojax.eval import suite
from dinojax.eval.row import Row

LIST = """\
What each evaluation needs, costs and reports. docs/evaluation.md says more, and how to add one.

examples:
  dinojax eval list
"""
EVALUATE = """\
{says}. With the frozen ema network of a run's checkpoint.
Needs {needs}. Costs {costs}.

examples:
  dinojax eval {name} --run runs/tiny
  dinojax eval {name} --run runs/vitl16 --step 125000 \\
      --set knn.bank=/data/imagenet/train --set knn.query=/data/imagenet/val

keys of {section} (--set {section}.KEY=VALUE; dinojax config explain {section}.KEY):
  {keys}
"""


def add_verb(commands, shared: Parser) -> None:
    command, program, set_option = shared.command, shared.program, shared.set_option
    commands = shared.group(commands, "eval", "evaluate a network", LIST)
    command(commands, "list", "what each needs, costs and reports", LIST, _list)
    for name, row in suite.SUITE.items():
        parser = command(commands, name, row.title, described(name, row), _evaluate(program, name))
        parser.add_argument(
            "--run", metavar="DIR", required=True, help="run directory of a training run"
        )
        parser.add_argument("--stage", metavar="NAME", help="of the run; default: the one it is at")
        parser.add_argument(
            "--step", type=int, metavar="N", help="of the checkpoint; default: the last"
        )
        set_option(parser)


def described(name: str, row: Row) -> str:
    """The help of a row's command."""
    says = row.says[:1].upper() + row.says[1:]
    keys = ", ".join(suite.defaults()[row.section])
    return EVALUATE.format(
        name=name, says=says, needs=row.needs, costs=row.costs, section=row.section, keys=keys
    )


def _list(args: argparse.Namespace) -> None:
    for name, row in suite.SUITE.items():
        defaults = {f"{row.section}.{k}": v for k, v in suite.defaults()[row.section].items()}
        print(f"{name}: {row.title}, {row.says}")
        print(f"  needs    {row.needs}")
        print(f"  costs    {row.costs}")
        unit = f" in {row.unit}" if row.unit else ""
        print(
            f"  reports  {row.main_column(defaults)}{unit}, and what else begins with {row.prefix}"
        )
        switch = f"{row.section}.{row.switch or 'every'}"
        print(f"  in training when {switch} is set (dinojax config explain {switch})\n")


def _evaluate(program: Callable[[str], Callable], name: str) -> Callable:
    def run(args: argparse.Namespace) -> None:
        named = {} if args.stage is None else {"stage": args.stage}
        program("eval")(name, Path(args.run), args.set, args.step, **named)

    return run

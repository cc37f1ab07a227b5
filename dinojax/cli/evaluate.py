"""`dinojax eval NAME` and `dinojax eval list`: one command for each row of the table."""

import argparse
from collections.abc import Callable
from pathlib import Path

from dinojax.cli.parser import Parser
from dinojax.config import ConfigError
from dinojax.eval import suite
from dinojax.eval.row import Row, protocols_of

LIST = """\
What each evaluation needs, costs and reports. docs/evaluation.md says more, and how to add one.

examples:
  dinojax eval list
"""
HOW = """\
Of the frozen ema of a run's checkpoint, or of weights of any format. Results are printed, and
written as records to RUN/eval/NAME.jsonl or beside the weights, with a 95 % interval and the
fingerprint of their protocol. Features are kept in eval/features, so that what was killed goes on.
"""
EXAMPLES = """\
examples:
  dinojax eval {name} --run runs/tiny
  dinojax eval {name} --run runs/vitl16 --step 125000 \\
      --set knn.bank=/data/imagenet/train --set knn.query=/data/imagenet/val
  dinojax eval {name} --weights vits16.pth --data /data/flowers
  dinojax eval {name} --run runs/vitl16 --follow
"""


def add_verb(commands, shared: Parser) -> None:
    command, program, set_option = shared.command, shared.program, shared.set_option
    commands = shared.group(commands, "eval", "evaluate a network", LIST)
    command(commands, "list", "what each needs, costs and reports", LIST, _list)
    texts = {name: described(name, row) for name, row in suite.SUITE.items()}
    texts["all"] = (
        f"Every evaluation that there are data for.\n{HOW}\n{EXAMPLES.format(name='all')}"
    )
    for name, text in texts.items():
        title = suite.SUITE[name].title if name in suite.SUITE else "all of them"
        parser = command(commands, name, title, text, _evaluate(program, name))
        _options(parser)
        set_option(parser)


def _options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="DIR", help="run directory of a training run")
    source.add_argument("--weights", metavar="PATH", help="file or folder of any format")
    parser.add_argument("--stage", metavar="NAME", help="of the run; default: the one it is at")
    parser.add_argument(
        "--step", type=int, metavar="N", help="of the checkpoint; default: the last"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="folder with sub-folders train and val of labelled images, or images without labels; "
        "default: those of the run",
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="named values: paper, released, dinov2 or quick"
    )
    parser.add_argument("--out", metavar="DIR", help="of records of --weights")
    parser.add_argument("--prefix", default="", help="taken off the names in a file of weights")
    parser.add_argument("--backbone", metavar="PATH", help="of --weights of dino.txt without one")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="measure random weights and raw pixels as well, and say whether it is above them",
    )
    parser.add_argument("--no-cache", action="store_true", help="keep no features on disk")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="evaluate each new checkpoint of a running run, once, until it is finished",
    )
    parser.add_argument(
        "--poll", type=float, default=30.0, metavar="SECONDS", help="of --follow; default: 30"
    )


def described(name: str, row: Row) -> str:
    """The help of a row's command."""
    says = row.says[:1].upper() + row.says[1:]
    keys = ", ".join(suite.defaults()[row.section])
    protocols = ", ".join(protocols_of(row.module)) or "none"
    return (
        f"{says}.\nNeeds {row.needs}. Costs {row.costs}.\n\n{HOW}\n{EXAMPLES.format(name=name)}\n"
        f"protocols: {protocols}\n"
        f"keys of {row.section} (dinojax config explain {row.section}.KEY):\n  {keys}\n"
    )


def _list(args: argparse.Namespace) -> None:
    for name, row in suite.SUITE.items():
        defaults = {f"{row.section}.{k}": v for k, v in suite.defaults()[row.section].items()}
        print(f"{name}: {row.title}, {row.says}")
        print(f"  needs      {row.needs}")
        print(f"  costs      {row.costs}")
        unit = f" in {row.unit}" if row.unit else ""
        print(f"  reports    {row.main_column(defaults)}{unit}, and what else is {row.prefix}*")
        print(f"  protocols  {', '.join(protocols_of(row.module)) or 'none'}")
        switch = f"{row.section}.{row.switch or 'every'}"
        print(f"  training   when {switch} is set (dinojax config explain {switch})\n")


def _evaluate(program: Callable[[str], Callable], name: str) -> Callable:
    def run(args: argparse.Namespace) -> None:
        named = {"data": args.data, "protocol": args.protocol, "cache": not args.no_cache}
        if args.follow:
            if args.run is None or args.step is not None or args.stage is not None:
                raise ConfigError(
                    "--follow takes all checkpoints of a --run, no --stage or --step."
                )
            if args.baselines:
                raise ConfigError("--baselines compares one checkpoint; leave out --follow.")
            if args.poll <= 0:
                raise ConfigError(f"--poll {args.poll:g} is not above 0 seconds.")
            follow = program("eval --follow")
            follow(name, Path(args.run), args.set, seconds=args.poll, **named)
            return
        run_dir = None if args.run is None else Path(args.run)
        named |= {"stage": args.stage, "out": args.out, "prefix": args.prefix}
        named["backbone"] = args.backbone
        named |= {"baselines": args.baselines}
        program("eval")(name, run_dir, args.set, args.step, weights=args.weights, **named)

    return run

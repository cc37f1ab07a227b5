"""What the files of verbs share. A new verb is a new file here with a function `add_verb`."""

import argparse
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from dinojax import cli

FIRST = "train"  # in the help; the others follow by the names of their files

EPILOG = """\
exit codes:
  0  finished
  1  failed: a bug or the machine; the traceback is shown
  2  refused: usage, recipe, data or run directory; the message says what to change
  3  stopped by the alarm that the recipe asked for (knn.alarm_stops), and saved
  75 interrupted by SIGTERM, SIGINT or SIGUSR1 and saved; the same command continues
  76 interrupted with nothing to save yet, or twice; the last checkpoint stands
  77 no step finishes any more, or another process of the run is gone; the same command continues
  141 what read the output, such as head, has closed it
"""


def verbs() -> Iterator[ModuleType]:
    """The modules of this package that have a function add_verb(commands, parser)."""
    names = sorted(module.name for module in pkgutil.iter_modules(cli.__path__))
    for name in sorted(names, key=lambda name: name != FIRST):
        module = importlib.import_module(f"dinojax.cli.{name}")
        if hasattr(module, "add_verb"):
            yield module


def numbers(text: str) -> list[float]:
    """An argument of numbers with commas between."""
    return [float(number) for number in text.split(",")]


def bands(text: str) -> list[int]:
    """An argument of whole numbers from 1 on with commas between, each once."""
    found = [int(number) for number in text.split(",")]
    if min(found) < 1 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text}: bands are numbered from 1 on, each given once")
    return found


@dataclasses.dataclass(frozen=True)
class Parser:
    """How a file declares its commands; `commands` is what argparse adds them to."""

    program: Callable[[str], Callable]  # the function behind a command, imported when it runs

    @staticmethod
    def group(commands, name: str, summary: str, description: str | None = None) -> Any:
        """Commands of two words: what the second ones are added to."""
        group = commands.add_parser(
            name,
            help=summary,
            description=description or summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return group.add_subparsers(metavar="COMMAND", required=True)

    @staticmethod
    def command(commands, name: str, summary: str, description: str, function: Callable) -> Any:
        """The parser of a command; function: takes the parsed arguments."""
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run_command=function)
        command.add_argument(
            "--traceback", action="store_true", help="show where an error came from"
        )
        return command

    @staticmethod
    def config_options(
        command: argparse.ArgumentParser, *, required: bool, absent: str = ""
    ) -> None:
        """--config and --set. absent: what is so without a --config."""
        command.add_argument(
            "--config",
            metavar="RECIPE",
            required=required,
            help="a recipe file, the name of a packaged one, such as tiny, or a run directory, "
            f"whose resolved config is taken{absent}",
        )
        Parser.set_option(command)

    @staticmethod
    def set_option(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a key of the recipe, in one stage only with STAGE:KEY=VALUE; may be "
            "given many times",
        )

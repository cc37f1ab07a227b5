"""The command line: `dinojax COMMAND`. Each command imports its program only when it runs."""

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from dinojax.cli import console, local_paths, processes
from dinojax.cli import output as cli_output
from dinojax.cli.parser import EPILOG, Parser, verbs
from dinojax.config import ConfigError
from dinojax.distributed import cluster
from dinojax.distributed.interrupt import (
    ALARMED,
    FAILED,
    FINISHED,
    REFUSED,
    SAVED,
    Alarm,
    Interrupted,
    Lost,
    StorageError,
    end_now,
)
from dinojax.files import full
from dinojax.sharding import gpu_memory

# Command -> module and function of the program behind it.
PROGRAMS = {
    "train": ("dinojax", "train"),  # (configs of stages)
    "distill": ("dinojax", "distill"),  # (configs of students)
    "eval": ("dinojax.eval.evaluate", "evaluate"),  # (name, run_dir, overrides, step)
    "eval --follow": ("dinojax.eval.follow", "follow"),  # (name, run_dir, overrides)
    "plan --words": ("dinojax.plan.describe", "words_command"),  # (recipe, overrides, num_images)
    "gram pick": ("dinojax.eval.checkpoints", "pick_anchor"),  # (run_dir, overrides)
    "doctor": ("dinojax.monitor.doctor", "main"),  # (run_dir)
    "report": ("dinojax.monitor.report", "main"),  # (run_dir)
    "replay": ("dinojax.train.replay", "replay"),  # (folder)
    "export": ("dinojax.weights.run", "export_command"),
    "import": ("dinojax.weights.run", "import_command"),
    "embed": ("dinojax.eval.embed_folder", "embed_command"),
    "describe": ("dinojax.eval.describe", "describe_command"),
    "vocabulary": ("dinojax.text.vocabulary", "train_command"),
    "export dinotxt": ("dinojax.eval.text_export", "export_command"),
    "ckpt inspect": ("dinojax.checkpoint.inspect", "inspect_command"),  # (path, as_json)
}

# Commands that write, each in one process.
ALONE = ("eval", "eval --follow", "gram pick", "export", "import", "embed")

START = """\
examples:
  dinojax train --config tiny --run runs/tiny
  dinojax eval knn --run runs/tiny
  dinojax config show --config configs/vitl16_in1k.py --set batch_size=1024
  dinojax COMMAND --help

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is one of those that the help lists."""
    try:
        with cli_output.watched():
            args = _parser().parse_args(argv)
            with console.ours():
                code = _run(args)
    except cli_output.Closed:
        return cli_output.CLOSED
    processes.end_together(code)
    if code == SAVED:
        end_now(SAVED)  # all files are closed; only what hangs or crashes at the end is left
    return code


def _run(args: argparse.Namespace) -> int:
    try:
        return _judged(args)
    except Exception as error:
        if (cause := full.cause(error)) is None:
            raise
        print(f"dinojax: error: {full.told(cause, _where(args))}", file=sys.stderr)
        return FAILED


def _where(args: argparse.Namespace) -> str | None:
    """What a command writes to, in the words it was given."""
    found = [getattr(args, name, None) for name in ("run", "out", "folder")]
    return next((str(path) for path in found if path), None)


def _judged(args: argparse.Namespace) -> int:
    """Run a command; the exit code, after the message of an error that is told in one."""
    try:
        local_paths.check(args)
        gpu_memory.set_share()  # before anything asks JAX for its devices
        args.run_command(args)
    except BrokenPipeError:  # of cli_output, if it is that of stdout
        raise
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if full.cause(error) is not None:
            raise
        if args.traceback or not _is_refusal(error):
            traceback.print_exc()
        else:
            print(f"dinojax: error: {error}", file=sys.stderr)
        return REFUSED if _is_refusal(error) else FAILED
    except (StorageError, Lost) as error:
        print(f"dinojax: error: {error}", file=sys.stderr)
        return error.code if isinstance(error, Lost) else FAILED
    except Alarm as error:
        print(f"dinojax: {error}", file=sys.stderr)
        return ALARMED
    except Interrupted as error:
        print(f"dinojax: {error}", file=sys.stderr)
        return SAVED
    except Exception as error:
        if full.cause(error) is not None or not processes.several():
            raise
        traceback.print_exc()
        return FAILED
    return FINISHED


def _is_refusal(error: Exception) -> bool:
    """Whether the error tells the user something: files, or a ValueError that dinojax raised.

    A ValueError from inside a library is a bug of ours, and its traceback is worth more.
    """
    if isinstance(error, (ConfigError, OSError)):
        return True
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(__file__).parent.parent in Path(raised_in).parents


def _program(command: str):
    if command in ALONE:
        cluster.refuse_many(command)
    return _function(*PROGRAMS[command])


def _function(module: str, name: str):
    return getattr(importlib.import_module(module), name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dinojax",
        description="Train DINOv3 and DINOv2 vision foundation models in JAX.",
        epilog=START + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=cli_output.Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    shared = Parser(_program)
    for verb in verbs():
        verb.add_verb(commands, shared)
    return parser

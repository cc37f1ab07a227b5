"""The command line: `dinojax COMMAND`. Each command imports its program only when it runs."""

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from dinojax.cli import (
    config as cli_config,
)
from dinojax.cli import (
    console,
    local_paths,
    plan,
    processes,
    weights,
)
from dinojax.cli import (
    curate as cli_curate,
)
from dinojax.cli import (
    data as cli_data,
)
from dinojax.cli import (
    evaluate as cli_evaluate,
)
from dinojax.cli import (
    gram as cli_stages,
)
from dinojax.cli import output as cli_output
from dinojax.config import ConfigError, load_stages, load_students, pick, pick_students
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
    leaving,
)
from dinojax.files import full
from dinojax.sharding import gpu_memory

# Flag of `train` after --accept- -> what it accepts.
ACCEPT = {
    "new-data": "continue although the images changed; from here on their order differs",
    "new-config": "continue although the config changed; steps already done stay as they are",
}

# Command -> module and function of the program behind it.
PROGRAMS = {
    "train": ("dinojax.train.loop", "train"),  # (config, run_dir)
    "distill": ("dinojax.distill.loop", "distill"),  # (students, run_dir)
    "eval": ("dinojax.eval.checkpoints", "evaluate"),  # (name, run_dir, overrides, step)
    "plan --words": ("dinojax.plan.describe", "words_command"),  # (recipe, overrides, num_images)
    "gram pick": ("dinojax.eval.checkpoints", "pick_anchor"),  # (run_dir, overrides)
    "doctor": ("dinojax.monitor.doctor", "main"),  # (run_dir)
    "report": ("dinojax.monitor.report", "main"),  # (run_dir)
    "replay": ("dinojax.train.replay", "replay"),  # (folder)
    "export": ("dinojax.weights.run", "export_command"),
    "import": ("dinojax.weights.run", "import_command"),
    "embed": ("dinojax.eval.embed", "embed_command"),
    "ckpt inspect": ("dinojax.checkpoint.inspect", "inspect_command"),  # (path, as_json)
}

# Commands that write, each in one process.
ALONE = ("eval", "gram pick", "export", "import", "embed")

START = """\
examples:
  dinojax train --config tiny --run runs/tiny
  dinojax eval knn --run runs/tiny
  dinojax config show --config configs/vitl16_in1k.py --set batch_size=1024
  dinojax COMMAND --help

"""
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
TRAIN = """\
Train a recipe. RUN receives config.json, log.txt, metrics.jsonl and checkpoints/. A RUN that
exists continues from its last checkpoint if its config agrees, else the command says what differs.

examples:
  dinojax train --config tiny --run runs/tiny
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
continues; students may join and leave (docs/distillation.md).

examples:
  dinojax distill --config configs/distill_tiny.py --run runs/family --set distill.teacher=runs/tiny
  dinojax distill --config configs/distill_7b.py --run runs/family \\
      --set distill.teacher=runs/vit7b --set data.path=/data/images --set vits:distill.share=8
"""
INSPECT = """\
What checkpoints hold, on a machine without the accelerator: step, position, devices, versions,
config keys that differ from configs/base.py, complete or torn. One STEP also lists its arrays.
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


def _train(args: argparse.Namespace) -> None:
    found = load_stages(args.config, args.set)
    if args.stage is not None:
        pick(found, args.stage)
    _start("train", found, args)


def _distill(args: argparse.Namespace) -> None:
    found = pick_students(load_students(args.config, args.set), args.student)
    _start("distill", found, args)


def _start(command: str, found, args: argparse.Namespace) -> None:
    """A program that trains, in as many processes as it was started in."""
    began, wall = time.monotonic(), processes.seconds(args.max_wall)
    accept = [name for name in ACCEPT if getattr(args, f"accept_{name.replace('-', '_')}")]
    with leaving():  # until the run takes signals itself; importing jax takes seconds
        program = _program(command)
        _function("dinojax.monitor.compilation", "keep_programs")()
        with processes.joined(args):
            left = None if wall is None else wall - (time.monotonic() - began)
            program(found, Path(args.run), accept=accept, stage=args.stage, max_wall=left)


def _inspect(args: argparse.Namespace) -> None:
    _program("ckpt inspect")(Path(args.path), args.json)


def _on_folder(name: str):
    """The command of a program that takes one folder."""

    def command(args: argparse.Namespace) -> None:
        _program(name)(args.folder)

    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dinojax",
        description="Train DINOv3 and DINOv2 vision foundation models in JAX.",
        epilog=START + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=cli_output.Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = _command(commands, "train", "train a recipe, or continue a run", TRAIN, _train)
    distill = _command(commands, "distill", "many students of one teacher", DISTILL, _distill)
    for command in (train, distill):
        _config_options(command, required=True)
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

    evaluate = _group(commands, "eval", "evaluate a network", cli_evaluate.LIST)
    cli_evaluate.add(evaluate, _command, _program, _set_option)

    weights.add(commands, _command, _program)
    plan.add(commands, _command, _program, _set_option)
    shard = _group(commands, "shard", "where arrays live on devices", plan.SHARD)
    plan.add_shard(shard, _command, _config_options)

    saved = _group(commands, "ckpt", "look at checkpoints", INSPECT)
    inspect = _command(saved, "inspect", "what checkpoints hold", INSPECT, _inspect)
    inspect.add_argument("path", metavar="PATH", help="a run, its checkpoints/STAGE, or one STEP")
    inspect.add_argument("--json", action="store_true", help="a JSON list, for programs")
    inspect.set_defaults(path_option="PATH")

    for name, summary, description, folder in (
        ("doctor", "say what is wrong with a run", DOCTOR, "RUN"),
        ("report", "write report.html of a run", REPORT, "RUN"),
        ("replay", "take a step that was not finite again", REPLAY, "RUN/autopsy/STEP"),
    ):
        reader = _command(commands, name, summary, description, _on_folder(name))
        reader.add_argument("folder", metavar=folder, type=Path, help="a folder")

    config = _group(commands, "config", cli_config.SUMMARY, cli_config.CONFIG)
    cli_config.add(config, _command, _config_options)

    gram = _group(commands, "gram", "help with Gram anchoring", cli_stages.PICK)
    cli_stages.add(gram, _command, program=_program, set_option=_set_option)

    data = _group(commands, "data", cli_data.SUMMARY, cli_data.DATA)
    cli_data.add(data, _command, _config_options)

    curate = _group(commands, "curate", cli_curate.SUMMARY, cli_curate.CURATE)
    cli_curate.add(curate, _command, _function)
    return parser


def _group(commands, name: str, summary: str, description: str | None = None):
    group = commands.add_parser(
        name,
        help=summary,
        description=description or summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return group.add_subparsers(metavar="COMMAND", required=True)


def _command(commands, name: str, summary: str, description: str, function):
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run_command=function)
    command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return command


def _config_options(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--config",
        metavar="RECIPE",
        required=required,
        help="a recipe file, or the name of a packaged one, such as tiny",
    )
    _set_option(command)


def _set_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe, in one stage only with STAGE:KEY=VALUE; may be given "
        "many times",
    )

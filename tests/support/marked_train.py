"""`dinojax train` or `distill` that tells where it is: for tests that stop a process at a place.

The environment gives MARKS, the number of an open file descriptor that receives one line
"PHASE NUMBER TIME" as a phase begins (NUMBER counts the steps of all stages, TIME is of time.time),
ORDER, a file that collects the image ids
of every step taken, and STALL, a step whose images come a second late. With FEW there are few tiles
to evaluate with, and of several processes one compiles. Nothing else is changed.
"""

import json
import os
import sys
import time

STALL_SECONDS = 1.0  # for a wait long enough to be hit


def before(owner, name: str, action) -> None:
    """Call `action` with what owner.name is called with, then owner.name itself."""
    original = getattr(owner, name)

    def wrapped(*args, **options):
        action(*args, **options)
        return original(*args, **options)

    setattr(owner, name, wrapped)


def mark(phase: str, number: int = 0) -> None:
    os.write(int(os.environ["MARKS"]), f"{phase} {number} {time.time()}\n".encode())


def remember(number: int, ids) -> None:
    """A step and its images, in one write: whole or not there at all."""
    line = json.dumps({"step": number, "ids": ids.tolist()}) + "\n"
    file = os.open(os.environ["ORDER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line.encode())
    os.close(file)


def main() -> int:
    from dinojax.cli import main as cli
    from dinojax.data.loader import Loader
    from dinojax.monitor.autopsy import Autopsy
    from dinojax.train import finish, trainer
    from dinojax.train.records import Records
    from dinojax.train.stage import Run
    from dinojax.viz.probe import Probe

    stall, before_stage = int(os.environ["STALL"]), 0

    def beginning(records, run, *_, **__):
        nonlocal before_stage
        before_stage = run.steps_before

    def waiting(loader):
        number = before_stage + loader.position // loader._batch_size + 1
        mark("wait", number)
        if number == stall:
            time.sleep(STALL_SECONDS)

    def stepping(_, number, host_batch):
        remember(before_stage + number, host_batch["ids"])
        mark("step", before_stage + number)

    before(Records, "__init__", beginning)
    before(trainer, "compile_step", lambda built: mark("compile"))
    before(Loader, "__next__", waiting)
    before(Autopsy, "keep", stepping)
    before(Run, "save", lambda run, state, *, step, **_: mark("save", before_stage + step))
    before(Probe, "look", lambda probe, network, number: mark("evaluate", number))
    before(finish, "finish", lambda run, state, **_: mark("finish", before_stage + run.num_steps))
    if "FEW" in os.environ:
        from dinojax.data import tiles
        from tests.support import few_tiles_train, several_worker

        tiles.SPLITS = few_tiles_train.SPLITS
        several_worker.compile_once()
    mark("start")
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

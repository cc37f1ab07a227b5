"""What a run says and leaves behind where it ends before its time."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dinojax.distributed import interrupt as interrupts
from dinojax.distributed import process_group
from dinojax.distributed.interrupt import NOT_SAVED, SAVED, Interrupt
from dinojax.distributed.process_group import ProcessGroup
from dinojax.distributed.subgroup import Subgroup
from dinojax.monitor.watchdog import dump_stacks
from dinojax.train.stage import Run

log = logging.getLogger(__name__)


class PutOff(Exception):
    """An evaluation does not go on, for the run is to stop."""


def stoppable(embed: Callable, processes: ProcessGroup, interrupt: Interrupt) -> Callable:
    """The same function, which does not go on between two batches once a stop was asked for.

    It raises Asked; PutOff where processes are a part of the run's: others take no turn then.
    """
    if not isinstance(processes, Subgroup):
        return interrupts.stoppable(embed, interrupt)

    def unless_stopped(params, images_BHWC):
        if processes.settle("stopped", processes.is_asked_to_stop, any):
            raise PutOff
        return embed(params, images_BHWC)

    return unless_stopped


def unsaved(runs: Sequence[Run], signal: str) -> int:
    """Of a process asked to stop while nothing is there to save: the exit code, after a note."""
    log.error("stopped by %s before anything new was done; the same command continues", signal)
    saved = [run.checkpoints.latest() for run in runs]
    for run, step in zip(runs, saved, strict=True):
        run.note(event="stop", step=step or 0, reason=f"{signal}, with nothing new to save")
    return NOT_SAVED if None in saved else SAVED


def lost(directory: Path, runs: Sequence[Run], why: str, hangs: bool) -> None:
    """Of a process that another one takes with it, or that hangs."""
    if hangs:
        path = directory / f"stacks.{process_group.current().index}.txt"
        dump_stacks(path)
        log.error("what every thread was doing is in %s", path)
    for run in runs:
        run.note(event="stop", reason=why)

"""Program 2: many students of one teacher, whose forward pass is taken once per step.

main -> distill -> Trainer.step -> Step -> jax.grad(loss). A student's step is that of program 1
with the same config: who else learns, and on which devices, changes no result. Students that are
ahead wait for the others, so that one may join, leave, end or fail at any time.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from dinojax.config import Config, ConfigError, pick
from dinojax.config.saved import FAMILY
from dinojax.distill.placement import Notes
from dinojax.distill.stage import Stage
from dinojax.distill.students import check_shared
from dinojax.distributed import process_group
from dinojax.distributed.interrupt import Interrupt, within
from dinojax.files.local import refuse_url
from dinojax.runs import lock
from dinojax.runs.directory import claim, enter, is_finished, name_of, occupy, refuse_links
from dinojax.runs.scalars import RunLog
from dinojax.train import preflight
from dinojax.train.checks import tell_of
from dinojax.train.stage import open_train_source
from dinojax.train.state import State

log = logging.getLogger(__name__)


def distill(
    students: Mapping[str, Sequence[Config]],
    run_dir: str | Path,
    *,
    accept: Collection[str] = (),
    stage: str | None = None,
    max_wall: float | None = None,
) -> dict[str, State]:
    """Train every student through every stage, each in RUN/STUDENT; their last states.

    students: name -> configs of its stages in order. Arguments and errors as for `train.train`;
    StudentFailed names the student that ended before its time.
    """
    root, states = Path(run_dir), dict[str, State]()
    with _opened(root, students, stage, accept, max_wall) as stages:
        for current in stages:
            with current.at_work(accept) as lessons:
                for lesson in lessons:
                    for student in lesson.students:
                        with current.turn_of(student):
                            student.step(lesson.host_batch, lesson.batch, lesson.features)
            states = current.states
    return states


@contextlib.contextmanager
def _opened(
    root: Path,
    students: Mapping[str, Sequence[Config]],
    stage: str | None,
    accept: Collection[str],
    max_wall: float | None,
) -> Iterator[Iterator[Stage]]:
    """The run directories in this process's hands, and what stages there are to do, checked."""
    first = next(iter(students.values()))
    if stage is not None:
        pick(first, stage)
    for number in range(len(first)):
        check_shared({name: configs[number] for name, configs in students.items()})
    processes = process_group.current()
    sources = {name_of(c): open_train_source(c) for c in first}
    for configs in students.values():
        preflight.check_same(processes, configs, sources, root)
    with contextlib.ExitStack() as stack:
        if processes.is_main:
            _occupy(root, students, stack, index=0)
        preflight.check_storage(processes, root)
        if not processes.is_main:
            _occupy(root, students, stack, index=processes.index)
        name = "log.txt" if processes.is_main else f"log.{processes.index}.txt"
        stack.enter_context(RunLog(root / name))
        notes = Notes(root, students)  # asks for devices, as all processes must together
        if processes.is_main:
            for name, configs in students.items():
                claim(root / name, configs, accept)
            notes.tell()
        processes.settle("claimed")
        interrupt = stack.enter_context(
            Interrupt(processes=processes if processes.count > 1 else None)
        )
        stack.enter_context(within(max_wall, interrupt))
        every = [config for configs in students.values() for config in configs]
        preflight.check_devices(processes, [config.expect for config in every])
        yield _stages(root, students, stage, sources, notes, interrupt)


def _stages(
    root: Path,
    students: Mapping[str, Sequence[Config]],
    stage: str | None,
    sources,
    notes,
    interrupt,
) -> Iterator[Stage]:
    """Those that are not done, the last one in any case."""
    processes = process_group.current()
    names = [name_of(c) for c in next(iter(students.values()))]
    wanted = names if stage is None else [stage]
    for current in wanted:
        number, is_last = names.index(current), current == wanted[-1]
        configs_now = {name: configs[number] for name, configs in students.items()}
        done = all(is_finished(root / n, c) for n, c in configs_now.items())
        if processes.settle("done", done) and not is_last:
            log.info("stage %s is done", current)
            continue
        if processes.is_main:
            for name, configs in students.items():
                enter(root / name, configs_now[name], configs)
        processes.settle("entered")
        tell_of(sources[current], configs_now[next(iter(configs_now))].batch_size)
        yield Stage(root, configs_now, sources[current], notes, interrupt, is_last=is_last)


def _occupy(root: Path, students: Collection[str], stack, *, index: int) -> None:
    """Make and lock the directory and those of the students, for a process of the run."""
    refuse_url(root, "--run")
    refuse_links(root)
    names = [path.name for path in root.iterdir()] if root.exists() else []
    foreign = [name for name in names if not name.startswith(lock.FILE)]
    if foreign and FAMILY not in names and index == 0:
        raise ConfigError(
            f"{root} is not empty and holds no {FAMILY}, so it is none of "
            "`dinojax distill`; use another --run."
        )
    root.mkdir(parents=True, exist_ok=True)
    stack.enter_context(lock.held(root, process=index))
    for name in students:
        stack.enter_context(occupy(root / name, index=index))

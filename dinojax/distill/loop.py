"""Program 2: many students of one teacher, whose forward pass is taken once per step.

main -> distill -> _stage -> _lesson -> Step -> jax.grad(loss). A student's step is that of
program 1 with the same config: who else learns, and on which devices, changes no result. Students
that are ahead wait for the others, so that one may join, leave or fail at any time.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax

from dinojax.config import Config, ConfigError, pick
from dinojax.data.loader import Loader, closed_in_time
from dinojax.data.mixture import parts_of
from dinojax.data.quarantine import Quarantine
from dinojax.distill import placement as placements
from dinojax.distill.placement import Notes, Placement
from dinojax.distill.placement_search import MEASURED, PlacementSearch, Stopwatch
from dinojax.distill.remote_student import RemoteStudent
from dinojax.distill.shutdown import Shutdown
from dinojax.distill.students import check_shared
from dinojax.distributed import process_group, subgroup
from dinojax.distributed.interrupt import (
    NOT_SAVED,
    SAVED,
    Alarm,
    Asked,
    Interrupt,
    Interrupted,
    within,
)
from dinojax.files.local import refuse_url
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs import lock
from dinojax.runs.directory import claim, enter, is_finished, name_of, occupy, refuse_links
from dinojax.runs.scalars import RunLog
from dinojax.sharding.batch import global_batch
from dinojax.train import preflight
from dinojax.train.periodic import pauses
from dinojax.train.stage import Run, check_start, lost, open_run, open_train_source, tell_of
from dinojax.train.state import State
from dinojax.train.teacher import open_teacher
from dinojax.train.teacher_forward import SharedTeacher
from dinojax.train.trainer import Trainer

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
    root = Path(run_dir)
    names = [name_of(c) for c in next(iter(students.values()))]
    if stage is not None:
        pick(next(iter(students.values())), stage)
    for number in range(len(names)):
        check_shared({name: configs[number] for name, configs in students.items()})
    processes = process_group.current()
    sources = {name_of(c): open_train_source(c) for c in next(iter(students.values()))}
    for configs in students.values():
        preflight.check_same(processes, configs, sources, root)
    states: dict[str, State] = {}
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
        for number, current in enumerate(names):
            if stage not in (None, current):
                continue
            configs_now = {name: configs[number] for name, configs in students.items()}
            done = all(is_finished(root / n, c) for n, c in configs_now.items())
            if processes.settle("done", done) and stage is None and number < len(names) - 1:
                log.info("stage %s is done", current)
                continue
            if processes.is_main:
                for name, configs in students.items():
                    enter(root / name, configs_now[name], configs)
            processes.settle("entered")
            tell_of(sources[current], every[0].batch_size)
            states = _Stage(root, configs_now, sources[current], notes, interrupt).run(accept)
    return states


def _occupy(root: Path, students: Collection[str], stack, *, index: int) -> None:
    """Make and lock the directory and those of the students, for a process of the run."""
    refuse_url(root, "--run")
    refuse_links(root)
    names = [path.name for path in root.iterdir()] if root.exists() else []
    foreign = [name for name in names if not name.startswith(lock.FILE)]
    if foreign and placements.FILE not in names and index == 0:
        raise ConfigError(
            f"{root} is not empty and holds no {placements.FILE}, so it is none of "
            "`dinojax distill`; use another --run."
        )
    root.mkdir(parents=True, exist_ok=True)
    stack.enter_context(lock.held(root, process=index))
    for name in students:
        stack.enter_context(occupy(root / name, index=index))


class _Stage:
    """One stage of all students, from one placement to the next until it is done."""

    def __init__(
        self, root, configs: dict[str, Config], source, notes: Notes, interrupt: Interrupt
    ):
        self._root, self._configs, self._notes = root, configs, notes
        self._interrupt = interrupt
        self._first = next(iter(configs.values()))
        self._num_steps = self._first.num_steps
        teachers = [open_teacher(config) for config in configs.values()]  # refuses what differs
        self._teacher = teachers[0]
        self._source = source

    def run(self, accept: Collection[str]) -> dict[str, State]:
        """The states after the last step, of students with devices of this process.

        Raises StudentFailed, Interrupted.
        """
        began = time.monotonic()
        search = PlacementSearch(self._configs, self._teacher, self._notes)
        for placement in search.placements():
            log.info("%s", placement.told())
            with contextlib.ExitStack() as stack:
                students, shared_teacher = self._open(placement, stack, accept)
                session = functools.partial(self._session, students, shared_teacher, placement)
                ahead = max(student.number for student in students)
                if any(student.number < ahead for student in students):
                    session(end=ahead)  # those behind catch up
                end = ahead + MEASURED
                if search.measures and end < self._num_steps:
                    self._notes.add(session(end=end, measures=True))
                    continue
                if search.measures:
                    log.info("too few steps are left to measure placements")
                session(end=self._num_steps)
                seconds = time.monotonic() - began
                states = {student.name: student.finish(seconds) for student in students}
                self._shutdown.meet("finished")
                return {name: state for name, state in states.items() if state is not None}
        raise AssertionError("the last placement goes to the end")

    # -- at work -----------------------------------------------------------------------------

    def _open(
        self, placement: Placement, stack, accept
    ) -> tuple[list[Trainer | RemoteStudent], SharedTeacher]:
        runs, processes = self._runs(placement), process_group.current()
        for run in runs.values():
            check_start(run)
        teacher_forwards = [built.teacher_forward for built in next(iter(runs.values())).programs]
        with jax.default_matmul_precision(self._first.precision.matmul):
            shared_teacher = SharedTeacher(
                [t for t in teacher_forwards if t is not None], placement.images
            )
        processes.last_words = functools.partial(lost, self._root, list(runs.values()))
        first = next(iter(runs.values()))
        watchdog = stack.enter_context(Watchdog(processes.report_stall, **first.hang))
        self._shutdown = Shutdown(watchdog, minutes=first.hang["minutes"])
        own: dict[str, Trainer] = {}
        alarm = None
        for name, run in runs.items():
            if not run.processes.has_me:
                stack.callback(run.checkpoints.close)
                continue
            options = {"accept": accept, "interrupt": self._interrupt, "watchdog": watchdog}
            try:
                own[name] = Trainer(name, run, shared_teacher, **options)
            except Alarm as error:  # of an earlier time, which stands
                stack.callback(run.checkpoints.close)
                alarm = alarm or f"student {name}: {error}"
            else:
                stack.callback(own[name].close)
                run.note(event="start", step=own[name].number, devices=own[name].layout.mesh.size)
        told = self._shutdown.meet(
            "opened", [alarm, {n: student.number for n, student in own.items()}], list
        )
        if alarms := [text for text, _ in told if text]:
            raise Alarm(alarms[0])
        numbers = {name: number for _, found in told for name, number in found.items()}
        absent = {n: RemoteStudent(n, run, numbers[n]) for n, run in runs.items() if n not in own}
        return [own.get(name) or absent[name] for name in runs], shared_teacher

    def _runs(self, placement: Placement) -> dict[str, Run]:
        """Of all students, of which each process writes to those that it has devices of."""
        runs, processes = {}, process_group.current()
        part_of = {
            name: subgroup.of(processes, placement.processes(name)) for name in self._configs
        }
        for has_me in (True, False):
            for name in (n for n, part in part_of.items() if part.has_me == has_me):
                config = self._configs[name]
                built = placements.programs(config, placement, name, self._teacher)
                with process_group.acting(part_of[name]):
                    runs[name] = open_run(
                        *(config, self._root / name, self._source, built), layout=placement.teacher
                    )
            processes.settle(
                "runs"
            )  # torn checkpoints are set aside before others look for whole ones
        return {name: runs[name] for name in self._configs}

    def _session(
        self,
        students: list[Trainer | RemoteStudent],
        shared_teacher: SharedTeacher,
        placement: Placement,
        *,
        end: int,
        measures: bool = False,
    ) -> dict:
        """Steps up to `end`; what was measured on the way, if anything was."""
        number = min(student.number for student in students)
        watch = Stopwatch(students, placement, number) if measures else None
        loader = self._loader(students[0], start=number * self._first.batch_size)
        before: dict = {}
        with closed_in_time(loader):
            try:
                with self._interrupt.ending(lambda name: _unsaved(students, name)):
                    for student in students:
                        student.compile()
                    self._shutdown.meet("compiled")
                for student in students:
                    with self._shutdown.naming(student):
                        student.evaluate()
                self._pause(students)
                while number < end:
                    began = time.monotonic()
                    with self._interrupt.breakable():
                        host_batch = next(loader)
                    waited = time.monotonic() - began
                    teacher_features = self._lesson(
                        students, shared_teacher, placement, number, host_batch, watch
                    )
                    number += 1
                    self._keep_up(students, number, loader.position, waited)
                    jax.block_until_ready(before)  # where no student makes wait, none is far ahead
                    before = teacher_features.health
                    self._shutdown.watchdog.beat()
                    self._interrupt.check()
                measured = {} if watch is None else watch.row()
            except Asked as asked:
                interrupted = Interrupted(str(asked), number)
                raise (self._shutdown.stopped(students, interrupted) or interrupted) from None
            except Exception as error:
                raise self._shutdown.failed(students, error) from error.__cause__
            if (failed := self._shutdown.stopped(students)) is not None:  # in the last step
                raise failed
        return measured

    def _lesson(
        self,
        students,
        shared_teacher: SharedTeacher,
        placement: Placement,
        number: int,
        host_batch,
        watch,
    ):
        """One step: the teacher's forward pass, then the steps of all who have come so far."""
        named = {name: host_batch[name] for name in ("images", "sizes")}
        batch = global_batch(placement.teacher, named)
        which = students[0].run.draw(number)
        teacher_features, shared = (
            shared_teacher(which, number, batch),
            shared_teacher.hand_out(batch),
        )
        if watch is not None:
            watch.begin(number, (teacher_features, shared))
        for student in students:
            if student.number == number and not student.has_ended:
                with self._shutdown.naming(student):
                    student.learn(which, shared, teacher_features, host_batch)
                    if watch is not None:
                        watch.learned(student)
        return teacher_features

    def _keep_up(self, students, number: int, position: int, waited: float) -> None:
        """What is due after a step; where that is more than a row, nobody goes on before all."""
        asked = "save" in self._interrupt.due
        self._interrupt.due.discard("save")
        for student in students:
            if student.number == number and not student.has_ended:
                with self._shutdown.naming(student):
                    student.keep_up(position, waited, asked=asked)
        if asked or any(pauses(student.run, number) for student in students):
            self._pause(students)

    def _pause(self, students) -> None:
        """Where some processes have had more to do than a step."""
        is_put_off = any(student.is_put_off for student in students)
        while self._shutdown.meet("a pause", is_put_off, any):
            self._interrupt.check()  # until the turn of all at which it raises Asked

    def _loader(self, student: Trainer | RemoteStudent, *, start: int) -> Loader:
        quarantine = Quarantine(
            self._root,
            max_share=self._first.data.max_bad_share,
            parts=parts_of(self._source),
            host=process_group.current().index,
        )
        options = {**student.run.loader_options, "quarantine": quarantine}
        return Loader(self._source, **options, start=start)


def _unsaved(students, name: str) -> int:
    """The exit code of a process asked to stop while it compiles."""
    log.error("stopped by %s before anything new was done; the same command continues", name)
    return SAVED if all(p.run.checkpoints.latest() is not None for p in students) else NOT_SAVED

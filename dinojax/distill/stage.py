"""One stage of all students: where they are placed, which steps come next, and how it ends."""

import contextlib
import functools
import logging
from collections.abc import Collection, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dinojax.config import Config
from dinojax.data.loader import Loader, closed_in_time
from dinojax.data.mixture import parts_of
from dinojax.data.quarantine import Quarantine
from dinojax.distill import placement as placements
from dinojax.distill.placement import Notes, Placement
from dinojax.distill.placement_search import MEASURED, PlacementSearch, Stopwatch
from dinojax.distill.remote_student import RemoteStudent
from dinojax.distill.shutdown import Shutdown
from dinojax.distributed import process_group
from dinojax.distributed.interrupt import Alarm, Asked, Interrupt, Interrupted
from dinojax.monitor.compilation import Compiles
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs.scalars import DataWait
from dinojax.sharding import mesh
from dinojax.sharding.batch import global_batch
from dinojax.train.batch_types import TeacherFeatures
from dinojax.train.checks import check_start
from dinojax.train.periodic import ProgressLine, energy_meter, pauses
from dinojax.train.stage import Run
from dinojax.train.state import State
from dinojax.train.stops import lost, unsaved
from dinojax.train.teacher import open_teacher
from dinojax.train.teacher_forward import SharedTeacher
from dinojax.train.trainer import Trainer

log = logging.getLogger(__name__)

Student = Trainer | RemoteStudent


class _Stopped(Exception):
    """All are saved and know what ends them."""

    def __init__(self, error: Exception):
        self.error = error


class Lesson(NamedTuple):
    """A step to be taken by those students who have come so far."""

    students: list[Student]
    host_batch: Mapping[str, Any]  # the images of this process
    batch: dict  # images, and what the teacher makes of them, as its devices have them
    features: TeacherFeatures


class Stage:
    """One stage of all students, from one placement to the next until all of them are through."""

    def __init__(
        self,
        root: Path,
        configs: dict[str, Config],
        source,
        notes: Notes,
        interrupt: Interrupt,
        *,
        is_last: bool,
    ):
        """root: the directory of all students. is_last: what shows a run is made at its end."""
        self._root, self._configs, self._notes = root, configs, notes
        self._interrupt, self._is_last = interrupt, is_last
        self._first = next(iter(configs.values()))
        self._num_steps = self._first.num_steps
        self._teacher = [open_teacher(c) for c in configs.values()][0]  # refuses what differs
        self._source = source
        self._students: list[Student] = []
        self._number = 0  # of steps done by those who are not ahead
        self._stopwatch: Stopwatch | None = None  # while a placement is measured
        self.states: dict[str, State] = {}  # in the end, of students with devices of this process

    @contextlib.contextmanager
    def at_work(self, accept: Collection[str]) -> Iterator[Iterator[Lesson]]:
        """All steps that are left, one after another; whatever ends them, all students are saved.

        Raises StudentFailed, Interrupted, Alarm.
        """
        devices = list(mesh.from_section(self._first.mesh).mesh.devices.flat)
        with contextlib.ExitStack() as stack:
            self._opened = stack.enter_context(contextlib.ExitStack())  # of one placement
            self._compiles = stack.enter_context(Compiles())
            self._energy = stack.enter_context(energy_meter(self._root, devices))
            try:
                yield self._lessons(accept)
            except _Stopped as stopped:
                raise stopped.error from None
            except Asked as asked:
                interrupted = Interrupted(str(asked), self._number)
                raise (self._shutdown.stopped(self._students, interrupted) or interrupted) from None
            except Exception as error:
                if not self._students:
                    raise
                raise self._shutdown.failed(self._students, error) from error.__cause__

    @contextlib.contextmanager
    def turn_of(self, student: Student) -> Iterator[None]:
        """A student's part of a step: what ends it names it; its time is taken if need be."""
        with self._shutdown.naming(student):
            yield
            if self._stopwatch is not None:
                self._stopwatch.learned(student)

    def _lessons(self, accept: Collection[str]) -> Iterator[Lesson]:
        search = PlacementSearch(self._configs, self._teacher, self._notes)
        for placement in search.placements():
            log.info("%s", placement.told())
            self._students = []
            self._opened.close()
            shared_teacher = self._open(placement, accept)
            session = functools.partial(self._session, shared_teacher, placement)
            ahead = max(student.number for student in self._students)
            if any(student.number < ahead for student in self._going()):
                yield from session(end=ahead)  # those behind catch up
            end = ahead + MEASURED
            if search.measures and end < self._num_steps and self._are_all_going():
                measured = yield from session(end=end, measures=True)
                if measured is not None:
                    self._notes.add(measured)
            else:
                if search.measures:
                    log.info("too few steps or students are left to measure placements")
                yield from session(end=self._num_steps)
                self._finish()
                return

    def _going(self) -> list[Student]:
        """Students whose stage is not over."""
        return [student for student in self._students if not student.is_over]

    def _are_all_going(self) -> bool:
        return self._going() == self._students

    def _finish(self) -> None:
        runs = [student.run for student in self._students]
        for student in self._students:
            student.end()
        if self._energy is not None:
            self._energy.write()  # reports show it
        with self._interrupt.ending(functools.partial(unsaved, runs)):
            for student in self._students if self._is_last else ():
                student.finish()
            self._shutdown.meet("finished")
        self.states = {s.name: s.state for s in self._students if isinstance(s, Trainer)}

    def _open(self, placement: Placement, accept: Collection[str]) -> SharedTeacher:
        """The students where they are placed, and their teacher."""
        processes = process_group.current()
        runs = placements.open_runs(
            self._configs, placement, self._root, source=self._source, teacher=self._teacher
        )
        for run in runs.values():
            self._opened.callback(run.checkpoints.close)
            check_start(run)
        processes.last_words = functools.partial(lost, self._root, list(runs.values()))
        first = next(iter(runs.values()))
        watchdog = self._opened.enter_context(Watchdog(processes.report_stall, **first.hang))
        self._shutdown = Shutdown(watchdog, minutes=first.hang["minutes"])
        forwards = [built.teacher_forward for built in first.programs if built.teacher_forward]
        with self._interrupt.unsaved(functools.partial(unsaved, list(runs.values()))):
            with jax.default_matmul_precision(self._first.precision.matmul):
                shared_teacher = SharedTeacher(forwards, placement.images)
            options: dict[str, Any] = dict(teacher=shared_teacher, accept=accept, watchdog=watchdog)
            options |= dict(interrupt=self._interrupt, compiles=self._compiles)
            here = {name: run for name, run in runs.items() if run.processes.has_me}
            own = {name: Trainer(run, name=name, **options) for name, run in here.items()}
        for trainer in own.values():
            self._opened.callback(trainer.close)
        self._students = self._start(own, runs)
        return shared_teacher

    def _start(self, own: dict[str, Trainer], runs: dict[str, Run]) -> list[Student]:
        """All students, of which each process knows its own; raises Alarm for one that stands."""
        alarm = None
        for name, trainer in own.items():
            try:
                trainer.start()
            except Alarm as error:  # of an earlier time
                alarm = alarm or f"student {name}: {error}"
        here = {name: (trainer.number, trainer.is_over) for name, trainer in own.items()}
        everywhere = self._shutdown.meet("opened", [alarm, here], list)
        if alarms := [text for text, _ in everywhere if text]:
            for run in runs.values():
                run.note_stop(Alarm(alarms[0]))
            raise Alarm(alarms[0])
        counts = {name: count for _, each in everywhere for name, count in each.items()}
        absent = {n: RemoteStudent(n, r, *counts[n]) for n, r in runs.items() if n not in own}
        return [own.get(name) or absent[name] for name in runs]

    # -- steps ---------------------------------------------------------------------------------

    def _session(
        self,
        shared_teacher: SharedTeacher,
        placement: Placement,
        *,
        end: int,
        measures: bool = False,
    ) -> Generator[Lesson, None, dict | None]:
        """Steps up to `end`; returns what was measured on the way, if anything was."""
        students = self._students
        self._number = min((student.number for student in self._going()), default=end)
        self._stopwatch = Stopwatch(students, placement, self._number) if measures else None
        self._compile()
        loader, loading = self._loader(students[0]), contextlib.ExitStack()
        loading.enter_context(closed_in_time(loader))
        self._opened.callback(loading.close)  # once all is saved, if something ends the session
        batches, progress = DataWait(loader), ProgressLine(students[0].run)
        before: dict = {}
        while self._number < end and self._going():
            with self._interrupt.breakable():
                host_batch = next(batches)
            lesson = self._lesson(shared_teacher, placement, host_batch)
            yield lesson
            self._number += 1
            self._after_step(lesson.students, batches.seconds)
            progress.show(self._number, {s.name: s.last_row for s in students})
            jax.block_until_ready(before)  # where no student makes wait, none is far ahead
            before = lesson.features.health
            self._shutdown.watchdog.beat()
            self._compiles.step_ended(self._number)
            self._interrupt.check()
        measured = None
        if self._stopwatch is not None and self._are_all_going():
            measured = self._stopwatch.row()
        if (failed := self._shutdown.stopped(students)) is not None:  # in the last step
            raise _Stopped(failed)
        loading.close()
        return measured

    def _compile(self) -> None:
        """The steps of all students, and what is evaluated before the first one."""
        runs = [student.run for student in self._students]
        with self._interrupt.ending(functools.partial(unsaved, runs)):
            for student in self._students:
                student.compile()
            self._shutdown.meet("compiled")
        for student in self._students:
            with self._shutdown.naming(student):
                student.evaluate()
        self._pause()

    def _loader(self, student: Student) -> Loader:
        quarantine = Quarantine(
            self._root,
            max_share=self._first.data.max_bad_share,
            parts=parts_of(self._source),
            host=process_group.current().index,
        )
        options = {**student.run.loader_options, "quarantine": quarantine}
        return Loader(self._source, **options, start=self._number * self._first.batch_size)

    def _lesson(
        self, shared_teacher: SharedTeacher, placement: Placement, host_batch: Mapping[str, Any]
    ) -> Lesson:
        """What students take a step with: the teacher's forward pass, dispatched."""
        batch = global_batch(placement.teacher, {n: host_batch[n] for n in ("images", "sizes")})
        which = self._students[0].run.draw(self._number)
        features = shared_teacher(which, self._number, batch)
        shared = shared_teacher.hand_out(batch)
        if self._stopwatch is not None:
            self._stopwatch.begin(self._number, (features, shared))
        come = [s for s in self._going() if s.number == self._number and not s.has_failed]
        return Lesson(come, host_batch, shared, features)

    def _after_step(self, students: list[Student], waited: float) -> None:
        """What is due after a step; where that is more than a row, nobody goes on before all."""
        asked = "save" in self._interrupt.due
        self._interrupt.due.discard("save")
        for student in (student for student in students if not student.has_failed):
            with self._shutdown.naming(student):
                student.after_step(waited=waited, save=asked)
                if student.is_over and not student.is_put_off:
                    student.end()
        if asked or any(pauses(student.run, self._number) for student in self._students):
            self._pause()

    def _pause(self) -> None:
        """Where some processes have had more to do than a step; all hear whose stage is over."""
        is_put_off = any(student.is_put_off for student in self._students)
        over = [student.name for student in self._students if student.is_here and student.is_over]
        everywhere = self._shutdown.meet("a pause", [is_put_off, over], list)
        names = {name for _, over_there in everywhere for name in over_there}
        for student in self._students:
            if isinstance(student, RemoteStudent) and student.name in names:
                student.is_over = True
        while any(put_off for put_off, _ in everywhere):
            self._interrupt.check()  # until the turn of all at which it raises Asked
            everywhere = self._shutdown.meet("a pause", [is_put_off, over], list)

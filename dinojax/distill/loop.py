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
from dinojax.distill.placement_search import MEASURED, Chooser, Stopwatch
from dinojax.distill.remote_student import Absent
from dinojax.distill.shutdown import Ending
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
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs import lock
from dinojax.runs.directory import claim, enter, is_finished, name_of, occupy
from dinojax.runs.scalars import RunLog
from dinojax.sharding.batch import global_batch
from dinojax.train import preflight
from dinojax.train.periodic import pauses
from dinojax.train.stage import Run, check_start, lost, open_run, open_train_source
from dinojax.train.state import State
from dinojax.train.teacher import open_teacher
from dinojax.train.teacher_forward import School
from dinojax.train.trainer import Pupil

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
    team = process_group.current()
    sources = {name_of(c): open_train_source(c) for c in next(iter(students.values()))}
    for configs in students.values():
        preflight.check_same(team, configs, sources, root)
    states: dict[str, State] = {}
    with contextlib.ExitStack() as stack:
        if team.is_main:
            _occupy(root, students, stack, index=0)
        preflight.check_storage(team, root)
        if not team.is_main:
            _occupy(root, students, stack, index=team.index)
        name = "log.txt" if team.is_main else f"log.{team.index}.txt"
        stack.enter_context(RunLog(root / name))
        notes = Notes(root, students)  # asks for devices, as all processes must together
        if team.is_main:
            for name, configs in students.items():
                claim(root / name, configs, accept)
            notes.tell()
        team.settle("claimed")
        interrupt = stack.enter_context(Interrupt(team=team if team.count > 1 else None))
        stack.enter_context(within(max_wall, interrupt))
        every = [config for configs in students.values() for config in configs]
        preflight.check_devices(team, [config.expect for config in every])
        for number, current in enumerate(names):
            if stage not in (None, current):
                continue
            configs_now = {name: configs[number] for name, configs in students.items()}
            done = all(is_finished(root / n, c) for n, c in configs_now.items())
            if team.settle("done", done) and stage is None and number < len(names) - 1:
                log.info("stage %s is done", current)
                continue
            if team.is_main:
                for name, configs in students.items():
                    enter(root / name, configs_now[name], configs)
            team.settle("entered")
            source = sources[current]
            states = _Stage(root, configs_now, source, notes, interrupt).run(accept)
    return states


def _occupy(root: Path, students: Collection[str], stack, *, index: int) -> None:
    """Make and lock the directory and those of the students, for a process of the run."""
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
        chooser = Chooser(self._configs, self._teacher, self._notes)
        for placement in chooser.placements():
            log.info("%s", placement.told())
            with contextlib.ExitStack() as stack:
                pupils, school = self._open(placement, stack, accept)
                session = functools.partial(self._session, pupils, school, placement)
                ahead = max(pupil.number for pupil in pupils)
                if any(pupil.number < ahead for pupil in pupils):
                    session(end=ahead)  # those behind catch up
                end = ahead + MEASURED
                if chooser.measures and end < self._num_steps:
                    self._notes.add(session(end=end, measures=True))
                    continue
                if chooser.measures:
                    log.info("too few steps are left to measure placements")
                session(end=self._num_steps)
                seconds = time.monotonic() - began
                states = {pupil.name: pupil.finish(seconds) for pupil in pupils}
                self._ending.meet("finished")
                return {name: state for name, state in states.items() if state is not None}
        raise AssertionError("the last placement goes to the end")

    # -- at work -----------------------------------------------------------------------------

    def _open(self, placement: Placement, stack, accept) -> tuple[list[Pupil | Absent], School]:
        runs, team = self._runs(placement), process_group.current()
        for run in runs.values():
            check_start(run)
        teachings = [built.teaching for built in next(iter(runs.values())).programs]
        with jax.default_matmul_precision(self._first.precision.matmul):
            school = School([t for t in teachings if t is not None], placement.images)
        team.last_words = functools.partial(lost, self._root, list(runs.values()))
        first = next(iter(runs.values()))
        watchdog = stack.enter_context(Watchdog(team.report_stall, **first.hang))
        self._ending = Ending(watchdog, minutes=first.hang["minutes"])
        own: dict[str, Pupil] = {}
        alarm = None
        for name, run in runs.items():
            if not run.team.has_me:
                stack.callback(run.checkpoints.close)
                continue
            options = {"accept": accept, "interrupt": self._interrupt, "watchdog": watchdog}
            try:
                own[name] = Pupil(name, run, school, **options)
            except Alarm as error:  # of an earlier time, which stands
                stack.callback(run.checkpoints.close)
                alarm = alarm or f"student {name}: {error}"
            else:
                stack.callback(own[name].close)
                run.note(event="start", step=own[name].number, devices=own[name].layout.mesh.size)
        told = self._ending.meet(
            "opened", [alarm, {n: pupil.number for n, pupil in own.items()}], list
        )
        if alarms := [text for text, _ in told if text]:
            raise Alarm(alarms[0])
        numbers = {name: number for _, found in told for name, number in found.items()}
        absent = {n: Absent(n, run, numbers[n]) for n, run in runs.items() if n not in own}
        return [own.get(name) or absent[name] for name in runs], school

    def _runs(self, placement: Placement) -> dict[str, Run]:
        """Of all students, of which each process writes to those that it has devices of."""
        runs, team = {}, process_group.current()
        crew_of = {name: subgroup.of(team, placement.processes(name)) for name in self._configs}
        for has_me in (True, False):
            for name in (n for n, crew in crew_of.items() if crew.has_me == has_me):
                config = self._configs[name]
                built = placements.programs(config, placement, name, self._teacher)
                with process_group.acting(crew_of[name]):
                    runs[name] = open_run(
                        *(config, self._root / name, self._source, built), layout=placement.teacher
                    )
            team.settle("runs")  # torn checkpoints are set aside before others look for whole ones
        return {name: runs[name] for name in self._configs}

    def _session(
        self,
        pupils: list[Pupil | Absent],
        school: School,
        placement: Placement,
        *,
        end: int,
        measures: bool = False,
    ) -> dict:
        """Steps up to `end`; what was measured on the way, if anything was."""
        number = min(pupil.number for pupil in pupils)
        watch = Stopwatch(pupils, placement, number) if measures else None
        loader = self._loader(pupils[0], start=number * self._first.batch_size)
        before: dict = {}
        with closed_in_time(loader):
            try:
                with self._interrupt.ending(lambda name: _unsaved(pupils, name)):
                    for pupil in pupils:
                        pupil.compile()
                    self._ending.meet("compiled")
                for pupil in pupils:
                    with self._ending.naming(pupil):
                        pupil.evaluate()
                self._pause(pupils)
                while number < end:
                    began = time.monotonic()
                    with self._interrupt.breakable():
                        host_batch = next(loader)
                    waited = time.monotonic() - began
                    taught = self._lesson(pupils, school, placement, number, host_batch, watch)
                    number += 1
                    self._keep_up(pupils, number, loader.position, waited)
                    jax.block_until_ready(before)  # where no student makes wait, none is far ahead
                    before = taught.health
                    self._ending.watchdog.beat()
                    self._interrupt.check()
                measured = {} if watch is None else watch.row()
            except Asked as asked:
                interrupted = Interrupted(str(asked), number)
                raise (self._ending.stopped(pupils, interrupted) or interrupted) from None
            except Exception as error:
                raise self._ending.failed(pupils, error) from error.__cause__
            if (failed := self._ending.stopped(pupils)) is not None:  # in the last step
                raise failed
        return measured

    def _lesson(self, pupils, school: School, placement: Placement, number: int, host_batch, watch):
        """One step: the teacher's forward pass, then the steps of all who have come so far."""
        named = {name: host_batch[name] for name in ("images", "sizes")}
        batch = global_batch(placement.teacher, named)
        which = pupils[0].run.draw(number)
        taught, shared = school(which, number, batch), school.hand_out(batch)
        if watch is not None:
            watch.begin(number, (taught, shared))
        for pupil in pupils:
            if pupil.number == number and not pupil.has_ended:
                with self._ending.naming(pupil):
                    pupil.learn(which, shared, taught, host_batch)
                    if watch is not None:
                        watch.learned(pupil)
        return taught

    def _keep_up(self, pupils, number: int, position: int, waited: float) -> None:
        """What is due after a step; where that is more than a row, nobody goes on before all."""
        asked = "save" in self._interrupt.due
        self._interrupt.due.discard("save")
        for pupil in pupils:
            if pupil.number == number and not pupil.has_ended:
                with self._ending.naming(pupil):
                    pupil.keep_up(position, waited, asked=asked)
        if asked or any(pauses(pupil.run, number) for pupil in pupils):
            self._pause(pupils)

    def _pause(self, pupils) -> None:
        """Where some processes have had more to do than a step."""
        is_put_off = any(pupil.is_put_off for pupil in pupils)
        while self._ending.meet("a pause", is_put_off, any):
            self._interrupt.check()  # until the turn of all at which it raises Asked

    def _loader(self, pupil: Pupil | Absent, *, start: int) -> Loader:
        quarantine = Quarantine(
            self._root,
            max_share=self._first.data.max_bad_share,
            parts=parts_of(self._source),
            host=process_group.current().index,
        )
        options = {**pupil.run.loader_options, "quarantine": quarantine}
        return Loader(self._source, **options, start=start)


def _unsaved(pupils, name: str) -> int:
    """The exit code of a process asked to stop while it compiles."""
    log.error("stopped by %s before anything new was done; the same command continues", name)
    return SAVED if all(p.run.checkpoints.latest() is not None for p in pupils) else NOT_SAVED

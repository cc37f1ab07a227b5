"""Program 2: many students of one teacher, whose forward pass is taken once per step.

main -> distill -> _stage -> _lesson -> Step -> jax.grad(loss). A student's step is that of
program 1 with the same config: who else learns, and on which devices, changes no result. Students
that are ahead wait for the others, so that one may join, leave or fail at any time.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinojax import family, lock, mesh
from dinojax.config import Config, ConfigError, pick
from dinojax.data.loader import Loader
from dinojax.data.mixture import parts_of
from dinojax.data.quarantine import Quarantine
from dinojax.directory import claim, enter, is_finished, name_of, occupy
from dinojax.family import APART, TURN, Notes, Placement
from dinojax.interrupt import NOT_SAVED, SAVED, Alarm, Asked, Interrupt, Interrupted
from dinojax.metrics import DataWait, RunLog
from dinojax.pupil import Pupil
from dinojax.run import open_run, open_train_source
from dinojax.state import State
from dinojax.teacher import open_teacher
from dinojax.teaching import School
from dinojax.upkeep import check, closed_in_time

log = logging.getLogger(__name__)

WARM, ALONE, TOGETHER = 2, 3, 4  # steps of a measurement: to warm up, one by one, as usual
BETTER = 0.95  # time over time from which another placement is worth a try


def distill(
    students: Mapping[str, Sequence[Config]],
    run_dir: str | Path,
    *,
    accept: Collection[str] = (),
    stage: str | None = None,
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
        family.check({name: configs[number] for name, configs in students.items()})
    states: dict[str, State] = {}
    with contextlib.ExitStack() as stack:
        _enter_root(root, stack)
        for name, configs in students.items():
            stack.enter_context(occupy(root / name))
            claim(root / name, configs, accept)
        stack.enter_context(RunLog(root / "log.txt"))
        notes = Notes(root, students)
        interrupt = stack.enter_context(Interrupt())
        for number, current in enumerate(names):
            if stage not in (None, current):
                continue
            configs_now = {name: configs[number] for name, configs in students.items()}
            done = all(is_finished(root / n, c) for n, c in configs_now.items())
            if done and stage is None and number < len(names) - 1:
                log.info("stage %s is done", current)
                continue
            for name, configs in students.items():
                enter(root / name, configs_now[name], configs)
            states = _Stage(root, configs_now, notes, interrupt).run(accept)
    return states


def _enter_root(root: Path, stack: contextlib.ExitStack) -> None:
    """Make and lock the directory of the students' own ones."""
    if root.exists() and any(root.iterdir()) and not (root / family.FILE).exists():
        raise ConfigError(
            f"{root} is not empty and holds no {family.FILE}, so it is none of `dinojax distill`; "
            "use another --run."
        )
    root.mkdir(parents=True, exist_ok=True)
    index = jax.process_index() if jax.distributed.is_initialized() else 0
    stack.enter_context(lock.held(root, process=index))


class _Stage:
    """One stage of all students, from one placement to the next until it is done."""

    def __init__(self, root: Path, configs: dict[str, Config], notes: Notes, interrupt: Interrupt):
        self._root, self._configs, self._notes = root, configs, notes
        self._interrupt = interrupt
        self._first = next(iter(configs.values()))
        self._num_steps = self._first.num_steps
        teachers = [open_teacher(config) for config in configs.values()]  # refuses what differs
        self._teacher = teachers[0]
        self._source = open_train_source(self._first)

    def run(self, accept: Collection[str]) -> dict[str, State]:
        """The states after the last step. Raises StudentFailed, Interrupted."""
        began = time.monotonic()
        for placement in self._placements():
            log.info("%s", placement.told())
            with contextlib.ExitStack() as stack:
                pupils, school = self._open(placement, stack, accept)
                number, ahead = (f(pupil.number for pupil in pupils) for f in (min, max))
                if self._measures and number < ahead:  # a step is measured with all of them
                    self._session(pupils, school, placement, end=ahead, measures=False)
                    number = ahead
                measures = self._measures and number + WARM + ALONE + TOGETHER < self._num_steps
                end = number + WARM + ALONE + TOGETHER if measures else self._num_steps
                found = self._session(pupils, school, placement, end=end, measures=measures)
                if measures:
                    self._notes.add(found)
                    continue
                seconds = time.monotonic() - began
                return {pupil.name: pupil.finish(seconds) for pupil in pupils}
        raise AssertionError("the last placement goes to the end")

    # -- where everyone works ----------------------------------------------------------------

    def _placements(self) -> Iterator[Placement]:
        """Placements to measure, then the one to stay with."""
        self._measures = False
        asked, cost = self._first.distill.place, self._costs()
        devices = mesh.from_section(self._first.mesh).mesh.size
        alone = len(self._configs) == 1 or devices == 1
        why = "there is one student" if len(self._configs) == 1 else "there is one device"
        if asked == TURN or (alone and asked != APART):
            log.info("in turn: %s", "distill.place=turn" if asked == TURN else why)
            yield family.placed(self._configs, TURN, cost)
            return
        if jax.process_count() > 1 and asked == "auto":
            log.info("in turn: checkpoints of a part of the devices need a process alone")
            yield family.placed(self._configs, TURN, cost)
            return
        try:
            apart = family.placed(self._configs, APART, cost)
        except ValueError as error:
            if asked == APART:
                raise
            log.info("in turn, because apart cannot be: %s", error)
            yield family.placed(self._configs, TURN, cost)
            return
        told = any(config.distill.share is not None for config in self._configs.values())
        self._measures = True
        if asked == APART and told:
            self._measures = False
            yield apart
            return
        if self._measured(APART) is None:
            yield apart
        if (row := self._measured(APART)) is not None and not told:
            cost = {n: s * row["devices"][n] for n, s in row["student_seconds"].items()}
            refined = family.placed(self._configs, APART, cost)
            assert refined.shares is not None
            slowest = max(cost[n] / share for n, share in refined.shares.devices.items())
            if slowest < BETTER * max(row["student_seconds"].values()):
                log.info("measured times ask for other shares: %s", refined.told())
                apart = refined
                if self._measured(APART, refined.shares.devices) is None:
                    yield refined
        if asked == "auto" and self._measured(TURN) is None:
            yield family.placed(self._configs, TURN, cost)
        self._measures = False
        yield self._best(apart, cost, asked)

    def _best(self, apart: Placement, cost: Mapping[str, float], asked: str) -> Placement:
        rows = {kind: self._measured(kind) for kind in (APART, TURN)}
        one, two = rows[APART], rows[TURN]
        if asked == APART or one is None:
            return apart
        if two is None:
            return family.placed(self._configs, TURN, cost)
        told = "%s: a step takes %.3g s apart and %.3g s in turn"
        kind = APART if one["step_seconds"] < two["step_seconds"] else TURN
        log.info(told, kind, one["step_seconds"], two["step_seconds"])
        if kind == TURN:
            return family.placed(self._configs, TURN, cost)
        return apart

    def _measured(self, kind: str, devices: dict | None = None) -> dict | None:
        """The fastest measurement of a kind, with these shares if they are given."""
        rows = [
            row
            for row in self._notes.measured
            if row["kind"] == kind and devices in (None, row["devices"])
        ]
        return min(rows, key=lambda row: row["step_seconds"], default=None)

    def _costs(self) -> dict[str, float]:
        if len(self._configs) == 1:
            return dict.fromkeys(self._configs, 1.0)
        found = family.costs(self._configs, self._teacher)
        for name, flops in found.items():
            log.info("%s: %.3g GFLOP a step", name, flops / 1e9)
        return found

    # -- at work -----------------------------------------------------------------------------

    def _open(self, placement: Placement, stack, accept) -> tuple[list[Pupil], School]:
        runs = {}
        for name, config in self._configs.items():
            built = family.programs(config, placement, name, self._teacher)
            runs[name] = open_run(config, self._root / name, self._source, built)
        for run in runs.values():
            check(run)
        teachings = [built.teaching for built in next(iter(runs.values())).programs]
        with jax.default_matmul_precision(self._first.precision.matmul):
            school = School([t for t in teachings if t is not None], placement.images)
        pupils = []
        for name, run in runs.items():
            pupil = Pupil(name, run, school, accept=accept, interrupt=self._interrupt)
            stack.callback(pupil.close)
            pupil.note(event="start", step=pupil.number, devices=pupil.layout.mesh.size)
            pupils.append(pupil)
        return pupils, school

    def _session(
        self,
        pupils: list[Pupil],
        school: School,
        placement: Placement,
        *,
        end: int,
        measures: bool,
    ) -> dict:
        """Steps up to `end`; what was measured on the way, if anything was."""
        number = min(pupil.number for pupil in pupils)
        size = self._first.batch_size
        loader = self._loader(pupils[0], start=number * size)
        watch = _Stopwatch(pupils, placement, number) if measures else None
        position = number * size
        with closed_in_time(loader):
            batches = DataWait(loader)
            try:
                with self._interrupt.ending(lambda name: _unsaved(pupils, name)):
                    for pupil in pupils:
                        pupil.compile()
                for pupil in pupils:
                    pupil.evaluate(batches)
                while number < end:
                    with self._interrupt.breakable():
                        host_batch = next(batches)
                    _lesson(pupils, school, placement, number, host_batch, watch)
                    number, position = number + 1, loader.position
                    for pupil in pupils:
                        if pupil.number == number:
                            with _naming(pupil):
                                pupil.keep_up(position, batches)
                    self._interrupt.check()
            except Asked as asked:
                self._stop(pupils, batches)
                raise Interrupted(str(asked), number) from None
            except BaseException:
                self._stop(pupils, batches)
                raise
            self._stop(pupils, batches)
        return {} if watch is None else watch.row()

    def _stop(self, pupils: list[Pupil], batches: DataWait) -> None:
        """Everyone's last checkpoint, whole and on disk, whatever has happened to one of them."""
        for pupil in pupils:
            try:
                pupil.flush(batches)
                pupil.save(pupil.number * self._first.batch_size)
                pupil.run.checkpoints.wait()
            except Exception as error:
                log.error("student %s: not saved at step %d (%s)", pupil.name, pupil.number, error)

    def _loader(self, pupil: Pupil, *, start: int) -> Loader:
        quarantine = Quarantine(
            self._root,
            max_share=self._first.data.max_bad_share,
            parts=parts_of(self._source),
            host=jax.process_index(),
        )
        options = {**pupil.run.loader_options, "quarantine": quarantine}
        return Loader(
            self._source,
            **options,
            start=start,
            host_index=jax.process_index(),
            num_hosts=jax.process_count(),
        )


def _lesson(pupils, school: School, placement: Placement, number: int, host_batch, watch) -> None:
    """One step: the teacher's forward pass, then the steps of all who have come so far."""
    named = {name: host_batch[name] for name in ("images", "sizes")}
    batch = mesh.global_batch(placement.teacher, named)
    which = pupils[0].run.draw(number)
    taught, shared = school(which, number, batch), school.hand_out(batch)
    if watch is not None:
        watch.begin(number, (taught, shared))
    for pupil in pupils:
        if pupil.number == number:
            with _naming(pupil):
                pupil.learn(which, shared, taught, host_batch)
                if watch is not None:
                    watch.learned(pupil)


@contextlib.contextmanager
def _naming(pupil: Pupil) -> Iterator[None]:
    """What ends a student names it."""
    try:
        yield
    except Alarm as alarm:
        pupil.failed(alarm)
        raise
    except Exception as error:
        raise pupil.failed(error) from error


def _unsaved(pupils: list[Pupil], name: str) -> int:
    """The exit code of a process asked to stop while it compiles."""
    log.error("stopped by %s before anything new was done; the same command continues", name)
    return SAVED if all(p.run.checkpoints.latest() is not None for p in pupils) else NOT_SAVED


class _Stopwatch:
    """Times a few steps: each student's alone, then a step as it usually is."""

    def __init__(self, pupils: list[Pupil], placement: Placement, first: int):
        self._placement, self._first = placement, first
        self._pupils = pupils
        self._alone: dict[str, list[float]] = {pupil.name: [] for pupil in pupils}
        self._mark = 0.0

    def begin(self, number: int, outputs) -> None:
        """The teacher's part of a step was dispatched."""
        self._step = number - self._first
        if self._step == WARM + ALONE:
            jax.block_until_ready(outputs)
            self._mark = time.monotonic()
        elif self._step < WARM + ALONE:
            jax.block_until_ready(outputs)
            self._since = time.monotonic()

    def learned(self, pupil: Pupil) -> None:
        """A student's step was dispatched."""
        if self._step >= WARM + ALONE:
            return
        pupil.wait()
        now = time.monotonic()
        if self._step >= WARM:
            self._alone[pupil.name].append(now - self._since)
        self._since = time.monotonic()

    def row(self) -> dict:
        """What was found, the same in every process."""
        for pupil in self._pupils:
            pupil.wait()
        step_seconds = (time.monotonic() - self._mark) / TOGETHER
        alone = {name: float(np.median(found)) for name, found in self._alone.items()}
        if jax.process_count() > 1:
            numbers = np.array([step_seconds, *alone.values()])
            step_seconds, *rest = multihost_utils.broadcast_one_to_all(numbers).tolist()
            alone = dict(zip(alone, rest, strict=True))
        own = self._placement.shares
        slowest = max(alone.values())
        for name, seconds in alone.items():
            idle = "" if own is None else f", idle {1 - seconds / slowest:.1%}"
            log.info("%s: %.3g s a step%s", name, seconds, idle)
        return {
            "kind": self._placement.kind,
            "devices": None if own is None else own.devices,
            "step_seconds": step_seconds,
            "student_seconds": alone,
        }

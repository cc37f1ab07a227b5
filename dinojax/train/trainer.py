"""One of several students at work: its run directory, its devices, and its half of every step."""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import jax

from dinojax.distributed import process_group
from dinojax.distributed.interrupt import stoppable
from dinojax.distributed.subgroup import Subgroup
from dinojax.monitor.autopsy import Autopsy
from dinojax.monitor.watchdog import Watchdog
from dinojax.sharding import mesh
from dinojax.sharding.view import view_on
from dinojax.train import finish, initialize, periodic
from dinojax.train.batch_types import TeacherFeatures
from dinojax.train.periodic import Clock, Saves
from dinojax.train.stage import Run, check_data, check_teacher, open_metrics
from dinojax.train.state import State
from dinojax.train.teacher_forward import SharedTeacher, for_student

log = logging.getLogger(__name__)


class _PutOff(Exception):
    """An evaluation does not go on, for the run is to stop."""


class StudentFailed(RuntimeError):
    """A student ended before its time; the message begins with its name."""


class Trainer:
    """A student between two steps. It learns from batches in their order, each exactly once.

    `number` counts the steps it has done; one that is ahead of the others, or behind, is not
    changed by that: what a step does depends on its number alone.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        shared_teacher: SharedTeacher,
        *,
        accept,
        interrupt,
        watchdog: Watchdog,
    ):
        self.name, self.run, self._shared_teacher = name, run, shared_teacher
        self.layout = run.program.layout
        self._interrupt, self._watchdog = interrupt, watchdog
        self.is_here, self.has_ended = True, False
        self.is_put_off = False  # its evaluation, for the run is about to stop
        with self._at_work():
            self._begin(accept)

    def _begin(self, accept) -> None:
        """The state to go on from, and all that looks after it."""
        run = self.run
        begin = run.processes.settle("checkpoint", run.checkpoints.latest())
        meta = dict[str, Any](seconds=0.0)
        if begin is None:
            self.state = initialize.first_state(run.program, run.config, run.directory)
        else:
            meta = run.checkpoints.restore_meta(begin)
            check_data(meta, run.source, accept)
            check_teacher(meta, self._shared_teacher.fingerprint)
            self.state = run.checkpoints.restore(run.program.abstract_state(), begin)
        self._heads = self._shared_teacher.heads(self.layout)
        self.number = int(self.state.step)
        self._embed = self._stoppable(run.program.embed())
        self._metrics = open_metrics(run, begin)
        seed, before = run.program.seed, run.steps_before
        self._autopsy = Autopsy(run.directory, seed=seed, steps_before=before)
        self._saves = Saves(run, Clock(meta["seconds"]), self._watchdog)
        rows = run.watch.of_interest(self._metrics.rows())
        run.watch.begin(run.processes.settle("rows so far", rows))
        self._done = periodic.evaluated(self._metrics, run)
        self._pending: list[tuple] = []  # (number, scalars, now) of steps that were dispatched
        self._waited, self._since = 0.0, time.monotonic()  # for data, since the last row
        self._speed = periodic.Speed(run.loader_options["batch_size"])
        self._steps: list[Callable] = []

    @contextlib.contextmanager
    def _at_work(self):
        with (
            process_group.acting(self.run.processes),
            mesh.use(self.layout),
            jax.default_matmul_precision(self.run.matmul),
        ):
            yield

    def _meet(self, what: str) -> None:
        """Wait for the student's processes: one may be busy with another student of its own."""
        self.run.processes.settle(what, seconds=60.0 * self.run.hang["minutes"])

    @property
    def is_apart(self) -> bool:
        """Whether only some processes of the run have devices of the student."""
        return isinstance(self.run.processes, Subgroup)

    def _stoppable(self, embed: Callable) -> Callable:
        """The same function, which does not go on between two batches once a stop was asked for."""
        if not self.is_apart:
            return stoppable(embed, self._interrupt)
        processes = self.run.processes

        def unless_stopped(params, images_BHWC):
            # No turn of all, which other processes would not take.
            if processes.settle("stopped", processes.is_asked_to_stop, any):
                raise _PutOff
            return embed(params, images_BHWC)

        return unless_stopped

    def compile(self) -> None:
        """Once; a session that goes on with the same placement needs no other."""
        if self._steps:
            return
        began = time.monotonic()
        with self._at_work(), self._watchdog.phase("compiling"):
            self._steps = [built.lower().compile() for built in self.run.programs]
        log.info("%s: compiled in %.0f s", self.name, time.monotonic() - began)

    def learn(
        self, which: int, batch: dict, teacher_features: TeacherFeatures, host_batch: dict
    ) -> None:
        """Dispatch a step. batch, teacher_features: as the teacher's devices have them; host_batch:
        the images of this process, for an autopsy."""
        teacher_forward = self.run.program.teacher_forward
        assert teacher_forward is not None
        own = view_on(batch, teacher_forward.student_sharding(self.layout))
        # Of processes that do not learn with this student nobody would ask for their images.
        self._autopsy.keep(self.number + 1, own if self.is_apart else host_batch)
        heard = for_student(
            teacher_features, self._heads, self.layout, is_spread=teacher_forward.is_spread
        )
        if self.number == 0 and self.run.pictures:
            with self._at_work():
                finish.draw_crops(self.run, self.state, own)
        now = self.run.program.now(self.number)
        self.state, scalars = self._steps[which](self.state, own, now, heard)
        self.number += 1
        self._pending.append((self.number, scalars, now))

    def wait(self) -> None:
        """Until the step dispatched last is done."""
        jax.block_until_ready(self.state.step)

    def keep_up(self, position: int, waited: float, *, asked: bool) -> None:
        """After a step was dispatched: the row of the one before, a save, an evaluation.

        position: images consumed; waited: seconds in which the step's images were not there yet;
        asked: whether all are to save here.
        """
        self.flush(but=1)
        self._waited += waited
        if self._autopsy.suspicious:
            self.flush()  # at once, so that a stop finds the weights of the bad steps
        if self._saves.due(self.number, asked=asked):
            self.flush()
            self.save(position)
        self.evaluate()

    def flush(self, *, but: int = 0) -> None:
        """Wait for what was dispatched, but for so many steps; write down what is due."""
        while len(self._pending) > but:
            self._record(*self._pending.pop(0))

    def _record(self, number: int, scalars: dict, now: dict) -> None:
        run = self.run
        scalars = jax.device_get(scalars)
        due = number % run.every.log == 0 or number == run.num_steps
        if scalars["bad_steps"] > 0 or due:
            drawn = {f"images/{name}": num for name, num in run.num_drawn(number).items()}
            elapsed = time.monotonic() - self._since
            more = {"data_wait": min(self._waited / elapsed, 1.0), **self._speed(number)}
            self._waited, self._since = 0.0, time.monotonic()
            self._metrics.write(number, {**scalars, **now, **drawn, **more})
            log.info(
                "%s: step %d/%d, loss %.4f", self.name, number, run.num_steps, scalars["total"]
            )
        with process_group.acting(run.processes):
            self._autopsy.check(number, scalars, now)

    def evaluate(self) -> None:
        """Probe and k-NN of the ema at step 0, every `knn.every` steps and at the end."""
        if not periodic.is_due(self.run, self.number, self._done):
            return
        self.flush()
        self._done.add(self.number)
        with self._at_work(), self._watchdog.phase("evaluating"):
            self._meet("evaluating")
            try:
                periodic.look(
                    *(self.run, self._embed, self.state, self.number),
                    metrics=self._metrics,
                    who=f"{self.name}: ",
                )
            except _PutOff:  # it is repeated as a whole when the run goes on
                self._done.discard(self.number)
                self.is_put_off = True

    def save(self, position: int) -> None:
        with self._at_work():
            self._meet("saving")
            self._saves.save(self.state, self.number, position)

    def finish(self, seconds: float) -> State | None:
        """The last page of its run directory; the state."""
        self.run.note(event="stop", step=self.number, reason="finished")
        with self._at_work(), self._watchdog.phase("finishing"):
            self._meet("finishing")
            finish.finish(self.run, self.state, train_seconds=seconds)
        return self.state

    def failed(self, error: Exception) -> StudentFailed:
        """The error by which all stop, with the student's name."""
        log.error("student %s: %s", self.name, error)
        return StudentFailed(
            f"student {self.name} failed, so all stop: {type(error).__name__}: {error}"
        )

    def close(self) -> None:
        self._metrics.close()
        self.run.checkpoints.close()

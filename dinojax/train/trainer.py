"""A stage under way: its state, what is due after a step, and its run directory.

Both programs drive it, `train` one at a time and `distill` several that share a teacher:

    trainer = Trainer(run, ...)  # at the first step, or where the last checkpoint is
    trainer.start()
    trainer.compile()
    trainer.evaluate()
    while not trainer.is_over:
        trainer.step(host_batch)  # -> Step -> jax.grad(loss)
        trainer.after_step(waited=...)
    trainer.end()
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from dinojax.distributed import process_group
from dinojax.distributed.interrupt import Interrupt
from dinojax.distributed.subgroup import Subgroup
from dinojax.monitor.compilation import Compiles
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs.finished import mark_finished
from dinojax.sharding import mesh
from dinojax.sharding.batch import global_batch
from dinojax.sharding.view import view_on
from dinojax.train import finish, initialize, periodic
from dinojax.train.batch_types import TeacherFeatures
from dinojax.train.checks import check_data, check_teacher
from dinojax.train.periodic import Clock, Saves
from dinojax.train.program import Program
from dinojax.train.records import Records, Row
from dinojax.train.stage import Run
from dinojax.train.state import State
from dinojax.train.step import META
from dinojax.train.stops import PutOff, stoppable
from dinojax.train.teacher_forward import SharedTeacher, for_student

log = logging.getLogger(__name__)


class StudentFailed(RuntimeError):
    """A student ended before its time; the message begins with its name."""


class Trainer:
    """A stage between two steps. It learns from batches in their order, each exactly once.

    `number` counts the steps done, `position` the images consumed, both from the start of the
    stage. What a step does depends on its number alone, whoever else learns meanwhile.
    """

    is_here = True  # this process has devices of it (distill/remote_student.py)

    def __init__(
        self,
        run: Run,
        *,
        interrupt: Interrupt,
        watchdog: Watchdog,
        compiles: Compiles,
        teacher: SharedTeacher | None = None,
        accept: Collection[str] = (),
        name: str = "",
    ):
        """teacher: of a distillation, its parameters on their devices. name: of one of several
        students, said with all that is logged."""
        self.run, self.layout, self.name = run, run.program.layout, name
        self._interrupt, self._watchdog, self._compiles = interrupt, watchdog, compiles
        self._teacher, self._who = teacher, f"{name}: " if name else ""
        self.has_failed = False  # it takes no more steps and waits for all to stop
        self.is_put_off = False  # its evaluation, for the run is about to stop
        self._is_ended = False
        self._steps: list[Callable] = []
        self._renew_anchor: Callable[[State], State] | None = None
        with self._at_work():
            self._open(accept)

    def _open(self, accept: Collection[str]) -> None:
        """The state to go on from, and all that looks after it."""
        run = self.run
        begin = run.processes.settle("checkpoint", run.checkpoints.latest())
        meta = dict[str, Any](seconds=0.0, position=0)
        if begin is None:
            self.state = initialize.first_state(run.program, run.config, run.directory)
        else:
            meta = run.checkpoints.restore_meta(begin)
            check_data(meta, run.source, accept)
            if self._teacher is not None:
                check_teacher(meta, self._teacher.fingerprint)
            self.state = run.checkpoints.restore(run.program.abstract_state(), begin)
            log.info("%scontinuing from step %d", self._who, begin)
        self._heads = None if self._teacher is None else self._teacher.heads(self.layout)
        self.number, self.position = int(self.state.step), meta["position"]
        self._network = run.program.network(self._stoppable)
        self._records = Records(run, begin, compiles=self._compiles, name=self.name)
        self._clock = Clock(meta["seconds"])
        self._saves = Saves(run, self._clock, self._watchdog)
        self._page = periodic.Page(run)
        self._evaluated = periodic.evaluated_steps(self._records.metrics, run)

    @contextlib.contextmanager
    def _at_work(self):
        """While something else than a step is done for this stage: compiling is no surprise."""
        self._compiles.elsewhere()
        with (
            process_group.acting(self.run.processes),
            mesh.use(self.layout),
            jax.default_matmul_precision(self.run.matmul),
        ):
            yield

    def _meet(self, what: str) -> None:
        """Wait for the stage's processes: one may be busy with another student of its own."""
        self.run.processes.settle(what, seconds=60.0 * self.run.hang["minutes"])

    @property
    def is_apart(self) -> bool:
        """Whether only some processes of the run have devices of the stage."""
        return isinstance(self.run.processes, Subgroup)

    @property
    def last_row(self) -> Row | None:
        """Of the metrics written since the trainer began."""
        return self._records.last

    @property
    def is_over(self) -> bool:
        """Whether the last step is done: `num_steps`, or that at which losses left chance."""
        return self.number >= self.run.num_steps or self.run.watch.ended

    # -- before the first step -----------------------------------------------------------------

    def start(self) -> None:
        """Note the start. Raises Alarm if the stage was stopped for one that stands."""
        run = self.run
        run.note(event="start", step=self.number, devices=self.layout.mesh.size)
        self._records.start()

    def compile(self) -> None:
        """Once; a stage that is over needs no step."""
        if self._steps or self.is_over:
            return
        with self._at_work(), self._watchdog.phase("compiling"):
            began = time.monotonic()
            log.info("%scompiling the step", self._who)
            self._steps = [compile_step(built) for built in self.run.programs]
            log.info("%scompiled in %.0f s", self._who, time.monotonic() - began)
            if self.run.anchor is not None:
                self._renew_anchor = initialize.refresh(self.state)

    # -- a step --------------------------------------------------------------------------------

    def step(
        self,
        host_batch: Mapping[str, Any],
        batch: dict | None = None,
        features: TeacherFeatures | None = None,
    ) -> None:
        """Dispatch a step. host_batch: the images of this process; batch, features: of several
        students, what the teacher's devices have of images and of its forward pass."""
        run, which = self.run, self.run.draw(self.number)
        known = {META + n: c.values_N[host_batch["ids"]] for n, c in run.metadata.items()}
        host_batch = {**host_batch, **known}
        batch = self._own_images(host_batch, batch)
        # Of processes that do not learn with this student nobody would ask for their images.
        self._records.keep_images(self.number + 1, batch if self.is_apart else host_batch)
        if features is None and self._teacher is not None:
            features = self._teacher(which, self.number, batch)
        if self.number == 0 and run.pictures:
            with self._at_work():
                finish.draw_crops(run, self.state, batch)
        now = run.program.now(self.number)
        own = () if features is None else (self._own_features(features),)
        self.state, scalars = self._steps[which](self.state, batch, now, *own)
        self.number, self.position = self.number + 1, self.position + run.config.batch_size
        if run.anchor is not None and run.anchor.renews(self.number):
            assert self._renew_anchor is not None
            self.state = self._renew_anchor(self.state)
            log.info("%sstep %d: the gram anchor is now the ema", self._who, self.number)
        self._records.add(self.number, scalars, now)

    def _own_images(self, host_batch: Mapping[str, Any], batch: dict | None) -> dict:
        """The batch as the step takes it; batch: as the teacher's devices have it."""
        if batch is None:
            names = self.run.program.batch_names
            return global_batch(self.layout, {name: host_batch[name] for name in names})
        forward = self.run.program.teacher_forward
        assert forward is not None
        return view_on(batch, forward.student_sharding(self.layout))

    def _own_features(self, features: TeacherFeatures) -> TeacherFeatures:
        forward = self.run.program.teacher_forward
        assert forward is not None and self._heads is not None
        return for_student(features, self._heads, self.layout, is_spread=forward.is_spread)

    def wait(self) -> None:
        """Until the step dispatched last is done."""
        jax.block_until_ready(self.state.step)

    # -- after a step --------------------------------------------------------------------------

    def after_step(self, *, waited: float, save: bool = False) -> None:
        """What is due once a step was dispatched: the row of the one before, a save, an evaluation.

        At most one step is in flight, so that the devices stay busy. waited: seconds in which the
        step's images were not there yet; save: all processes are to save here.
        Raises NonFiniteError or Alarm, with the weights as they were before.
        """
        self._records.write_due(self.number, waited=waited)
        if self.run.watch.ended or self._saves.is_due(self.number, asked=save):
            self.flush()  # what is on disk for a step includes its row of metrics
            self.save()
        self.evaluate()
        self._page.write_due(has_rows=self.last_row is not None)

    def flush(self) -> None:
        """Wait for all steps that were dispatched, and write down what is due."""
        self._records.flush()

    def evaluate(self) -> None:
        """Probe and evaluations of the ema at step 0, every so many steps each, and at the end."""
        if not periodic.is_evaluation_due(self.run, self.number, self._evaluated):
            return
        self.flush()  # rows in the same order whether or not a signal ends the evaluation
        self._evaluated.add(self.number)
        self._page.changed()
        with self._at_work(), self._watchdog.phase("evaluating"):
            self._meet("evaluating")
            try:
                periodic.evaluate(
                    *(self.run, self._network, self.state, self.number),
                    metrics=self._records.metrics,
                    who=self._who,
                )
            except PutOff:  # it is repeated as a whole when the run goes on
                self._evaluated.discard(self.number)
                self.is_put_off = True

    def _stoppable(self, forward: Callable) -> Callable:
        """A forward pass that a stop of the run ends between two batches."""
        return stoppable(forward, self.run.processes, self._interrupt)

    def save(self) -> None:
        """Start a checkpoint of the step done last, unless there is one."""
        with self._at_work():
            self._meet("saving")
            self._page.changed()
            self._saves.save(self.state, self.number, self.position)

    def save_now(self) -> None:
        """The same, whole and on disk, with the rows of all steps."""
        self.flush()
        self.save()
        self._saves.wait()

    # -- the end -------------------------------------------------------------------------------

    def end(self) -> None:
        """The stage is over: all of it is on disk, and its directory says so. Once."""
        if self._is_ended:
            return
        self.flush()
        self._saves.wait()
        if self.run.processes.is_main:
            mark_finished(self.run.directory, self.run.stage, self.number)
        self._meet("finished")
        self.run.note(event="stop", step=self.number, reason="finished")
        log.info("%sthe stage is over at step %d", self._who, self.number)
        self._page.write()
        self._is_ended = True

    def finish(self) -> None:
        """The last page of the run directory, after the last stage."""
        with self._at_work(), self._watchdog.phase("finishing"):
            self._meet("finishing")
            finish.finish(self.run, self.state, train_seconds=self._clock.seconds())

    def failed(self, error: Exception) -> StudentFailed:
        """The error by which all students stop, with the name of this one."""
        log.error("student %s: %s", self.name, error)
        return StudentFailed(
            f"student {self.name} failed, so all stop: {type(error).__name__}: {error}"
        )

    def close(self) -> None:
        """The files of metrics; checkpoints are whose opened the run."""
        self._records.close()


def compile_step(built: Program) -> Callable:
    """A step, from shapes alone."""
    return built.lower().compile()

"""`dinojax task train NAME`: a head learns on a frozen backbone, in a run directory of its own.

What a step does depends on its number alone, so a run that was stopped or killed goes on as if it
had not been. The directory holds task.json, checkpoints/, metrics.jsonl, log.txt, pictures/, and
at the end head.safetensors.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dinojax.checkpoint.manager import Checkpoints
from dinojax.config import ConfigError
from dinojax.data import fields
from dinojax.distributed.interrupt import Asked, Interrupt, Interrupted
from dinojax.eval.adamw import Settings as Now
from dinojax.eval.dense_schedules import OneCycle
from dinojax.files.drafts import open_new, write_json
from dinojax.runs import lock
from dinojax.runs.scalars import MetricsLog, RunLog
from dinojax.tasks import names, settings
from dinojax.tasks.box_data import BoxData, open_boxes_of
from dinojax.tasks.data import TaskData, open_data
from dinojax.tasks.judge import judge
from dinojax.tasks.network import TaskNetwork, check_backbone
from dinojax.tasks.settings import Settings
from dinojax.tasks.step import HeadState, StepSpec, step
from dinojax.weights import fingerprint, run
from dinojax.weights.load import Backbone
from dinojax.weights.tensors import held, write_safetensors

log = logging.getLogger(__name__)

TASK, WEIGHTS, METRICS = "task.json", "head.safetensors", "metrics.jsonl"
OURS = {TASK, WEIGHTS, METRICS, "checkpoints", "pictures", "log.txt", "lock"}
FREE = ("save_every", "judge_every")  # settings that change no value
LOG_EVERY = 20  # steps


class Diverged(RuntimeError):
    """The loss is no number any more; the last checkpoint is whole."""


def train(
    task: str, *, backbone: str, data: str, run_dir: str, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Train a head, or go on with it; how good it is at last, {} without images to be judged by.

    overrides: KEY=VALUE of tasks/settings.py. Raises ConfigError before any training for settings,
    data or a directory that do not fit, Interrupted after a signal, when all is saved.
    """
    directory, asked = Path(run_dir), settings.parse(task, overrides)
    _refuse_foreign(directory)
    loaded = run.load(backbone)
    check_backbone(loaded, backbone, asked.head)
    asked.check(task, loaded.spec.patch_size)
    opened = _open(task, data, asked, loaded)
    outputs = opened.outputs
    network = TaskNetwork(task, asked, loaded, outputs)
    told = {
        "task": task,
        "settings": asked.to_json(),
        "outputs": outputs,
        "backbone": str(Path(backbone).resolve()),
        "features": fingerprint.features(loaded),
        "data": opened.fingerprint,
        **opened.told,
    }
    _refuse_other(directory, told)
    if jax.device_count() > 1:
        network = dataclasses.replace(network, backbone=loaded.over())
    directory.mkdir(parents=True, exist_ok=True)
    with lock.held(directory), RunLog(directory / "log.txt"), Interrupt() as interrupt:
        write_json(directory / TASK, told)
        return _Training(network, opened, directory).until_over(interrupt)


def _open(task: str, data: str, asked: Settings, loaded: Backbone) -> TaskData | BoxData:
    channels = loaded.spec.channels
    if task != "detect":
        return open_data(task, data, asked, loaded.preprocessing, channels)
    sizes = {"channels": channels, "patch_size": loaded.spec.patch_size}
    return open_boxes_of(data, asked, loaded.preprocessing, **sizes)


def _refuse_foreign(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--run {directory} is no folder; use another.")
    if directory.is_dir() and not (directory / TASK).exists():
        others = sorted(path.name for path in directory.iterdir() if path.name not in OURS)
        if others:
            raise ConfigError(
                f"--run {directory} holds something else, such as {others[0]}; use another."
            )


def _refuse_other(directory: Path, told: dict[str, Any]) -> None:
    """Raise ConfigError where the directory belongs to another task, head, backbone or data."""
    if not (directory / TASK).exists():
        return
    saved = fields.read(directory / TASK)
    parts = ("task", "outputs", "data")
    before, now = (
        {**side.get("settings", {}), **{part: side.get(part) for part in parts}}
        for side in (saved, told)
    )
    changed = [
        f"{key}: {before.get(key)!r} there, {value!r} now"
        for key, value in now.items()
        if before.get(key) != value and key not in FREE
    ]
    if changed:
        raise ConfigError(
            f"--run {directory} was begun otherwise ({'; '.join(changed)}); give the same, or "
            "another --run."
        )
    fingerprint.check(told["features"], saved["features"], f"--backbone {told['backbone']}")


class _Training:
    """A head between two steps."""

    def __init__(self, network: TaskNetwork, data: TaskData | BoxData, directory: Path):
        self.network, self.data, self.directory = network, data, directory
        own = network.settings
        self.checkpoints = Checkpoints(directory / "checkpoints", keep_last=2, keep_every=None)
        self.state, self.number = HeadState.new(network.new(jax.random.key(own.seed))), 0
        if (layout := network.backbone.layout) is not None:  # whole on each device
            self.state = jax.device_put(self.state, layout.sharding())
        if (latest := self.checkpoints.latest()) is not None:
            self.state = self.checkpoints.restore(self.state, latest)
            self.number = latest
            log.info("continuing from step %d", latest)
        resumed = self.number if latest is not None else None
        self.metrics = MetricsLog(directory / METRICS, resume_step=resumed)
        self.spec = StepSpec(network.spec, own.clip, own.seed)
        warmup = min(own.warmup, own.num_steps - 1)
        self.schedule = OneCycle(own.lr, own.num_steps, warmup, 1e-6, beta1=0.9)

    def until_over(self, interrupt: Interrupt) -> dict[str, float]:
        own, values = self.network.settings, dict[str, float]()
        try:
            while self.number < own.num_steps:
                interrupt.check()
                scalars = self._step()
                self.number += 1
                is_last = self.number == own.num_steps
                due = self.number % own.save_every == 0 or is_last
                if due or self.number % LOG_EVERY == 0:
                    self._note(scalars)
                if self.data.val is not None and (self.number % own.judge_every == 0 or is_last):
                    values = self._judge()
                if due:
                    self._save()
            return self._finish(values)
        except Asked as asked:
            self._save()
            raise Interrupted(str(asked), self.number) from None
        finally:
            self.checkpoints.close()
            self.metrics.close()

    def _step(self) -> dict[str, jax.Array]:
        own = self.network.settings
        images, sizes, truth = self.data.batch(self.number)
        now = self.schedule.rate(self.number), own.weight_decay, self.schedule.momentum(self.number)
        truth = jax.tree.map(jnp.asarray, truth)
        inputs = self.spec.head.needed(images, sizes), self.network.features(images), truth
        values = Now(*(jnp.asarray(value, jnp.float32) for value in now))
        self.state, scalars = step(self.spec, self.state, *inputs, values)
        return scalars

    def _note(self, scalars: dict[str, jax.Array]) -> None:
        told = {name: float(value) for name, value in scalars.items()}
        if not all(map(np.isfinite, told.values())):
            raise Diverged(
                f"step {self.number}: the loss is {told['loss']}, its gradient "
                f"{told['grad_norm']}. The head is as before that step; a smaller lr may help."
            )
        log.info("step %d: loss %.4f", self.number, told["loss"])
        self.metrics.write(self.number, {**told, "lr": self.schedule.rate(self.number - 1)})

    def _judge(self) -> dict[str, float]:
        found = judge(self.network, self.state.variables, self.data)
        told = ", ".join(f"{name} {value:.4g}" for name, value in found.values.items())
        log.info("step %d: %s", self.number, told)
        self.metrics.write(self.number, {f"val/{n}": v for n, v in found.values.items()})
        folder = self.directory / "pictures"
        folder.mkdir(exist_ok=True)
        with open_new(folder / f"{self.number:08d}.png") as file:
            Image.fromarray(found.picture).save(file, format="PNG")
        return found.values

    def _save(self) -> None:
        latest = self.checkpoints.latest()
        if self.number and (latest is None or latest < self.number):
            meta = {"position": self.number * self.network.settings.batch_size}
            self.checkpoints.save(self.state, step=self.number, meta=meta)
        self.checkpoints.wait()

    def _finish(self, values: dict[str, float]) -> dict[str, float]:
        path = self.directory / WEIGHTS
        if not values and path.exists():
            log.info("step %d: the task is over", self.number)
            return values
        tensors = {n: held(x) for n, x in names.from_ours(self.state.variables).items()}
        write_safetensors(path, tensors, {"task": self.network.task})
        log.info("step %d: %s written", self.number, path)
        return values


def saved_task(path: str | Path) -> tuple[Path, dict[str, Any], Settings]:
    """(directory, content of task.json, settings) of a finished run or its head.safetensors."""
    directory = Path(path)
    directory = directory.parent if directory.name == WEIGHTS else directory
    if not (directory / TASK).is_file():
        raise ConfigError(f"--weights {path} is no run of `dinojax task train`: no {TASK} there.")
    if not (directory / WEIGHTS).is_file():
        raise ConfigError(
            f"--weights {path} is not finished: run `dinojax task train` with --run {directory} "
            "to its end."
        )
    told = fields.read(directory / TASK)
    for name, kind in {"task": str, "outputs": int, "backbone": str, "features": dict}.items():
        fields.field(told, name, kind, where=directory / TASK)
    return directory, told, settings.of_json(told.get("settings"), str(directory / TASK))

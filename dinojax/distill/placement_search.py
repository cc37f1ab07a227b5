"""Which placement of students is the fastest: by FLOPs first, then by the times of a few steps."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from dinojax.config import Config
from dinojax.distill import placement as placements
from dinojax.distill.placement import APART, TURN, Notes, Placement
from dinojax.distill.remote_student import RemoteStudent
from dinojax.distributed import process_group
from dinojax.sharding import mesh
from dinojax.train.teacher import Teacher
from dinojax.train.trainer import Trainer

log = logging.getLogger(__name__)

WARM, ALONE, TOGETHER = 2, 3, 4  # steps of a measurement: to warm up, one by one, as usual
MEASURED = WARM + ALONE + TOGETHER
BETTER = 0.95  # time over time from which another placement is worth a try


class PlacementSearch:
    """Offers placements to measure, then the one to stay with."""

    def __init__(self, configs: Mapping[str, Config], teacher: Teacher, notes: Notes):
        self._configs, self._teacher, self._notes = configs, teacher, notes
        self._first = next(iter(configs.values()))
        self.measures = False  # whether the placement offered last is to be measured

    def placements(self) -> Iterator[Placement]:
        """Placements to measure, then the one to stay with."""
        self.measures = False
        asked, cost = self._first.distill.place, self._costs()
        devices = mesh.from_section(self._first.mesh).mesh.size
        alone = len(self._configs) == 1 or devices == 1
        why = "there is one student" if len(self._configs) == 1 else "there is one device"
        if asked == TURN or (alone and asked != APART):
            log.info("in turn: %s", "distill.place=turn" if asked == TURN else why)
            yield placements.placed(self._configs, TURN, cost)
            return
        try:
            apart = placements.placed(self._configs, APART, cost)
        except ValueError as error:
            if asked == APART:
                raise
            log.info("in turn, because apart cannot be: %s", error)
            yield placements.placed(self._configs, TURN, cost)
            return
        told = any(config.distill.share is not None for config in self._configs.values())
        self.measures = True
        if asked == APART and told:
            self.measures = False
            yield apart
            return
        if self._measured(APART) is None:
            yield apart
        if (row := self._measured(APART)) is not None and not told:
            cost = {n: s * row["devices"][n] for n, s in row["student_seconds"].items()}
            refined = placements.placed(self._configs, APART, cost)
            assert refined.shares is not None
            slowest = max(cost[n] / share for n, share in refined.shares.devices.items())
            if slowest < BETTER * max(row["student_seconds"].values()):
                log.info("measured times ask for other shares: %s", refined.told())
                apart = refined
                if self._measured(APART, refined.shares.devices) is None:
                    yield refined
        if asked == "auto" and self._measured(TURN) is None:
            yield placements.placed(self._configs, TURN, cost)
        self.measures = False
        yield self._best(apart, cost, asked)

    def _best(self, apart: Placement, cost: Mapping[str, float], asked: str) -> Placement:
        rows = {kind: self._measured(kind) for kind in (APART, TURN)}
        one, two = rows[APART], rows[TURN]
        if asked == APART or one is None:
            return apart
        if two is None:
            return placements.placed(self._configs, TURN, cost)
        told = "%s: a step takes %.3g s apart and %.3g s in turn"
        kind = APART if one["step_seconds"] < two["step_seconds"] else TURN
        log.info(told, kind, one["step_seconds"], two["step_seconds"])
        if kind == TURN:
            return placements.placed(self._configs, TURN, cost)
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
        found = placements.costs(self._configs, self._teacher)
        for name, flops in found.items():
            log.info("%s: %.3g GFLOP a step", name, flops / 1e9)
        return found


def shortest(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each student, by the process that came to its step last: the others waited for it."""
    found: dict[str, float] = {}
    for name, seconds in (pair for row in rows for pair in row.items()):
        found[name] = min(seconds, found.get(name, seconds))
    return found


class Stopwatch:
    """Times a few steps: each student's alone, then a step as it usually is."""

    def __init__(
        self, students: Sequence[Trainer | RemoteStudent], placement: Placement, first: int
    ):
        self._placement, self._first = placement, first
        self._students = students
        self._alone: dict[str, list[float]] = {student.name: [] for student in students}
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

    def learned(self, student: Trainer | RemoteStudent) -> None:
        """A student's step was dispatched."""
        if self._step >= WARM + ALONE or not student.is_here:
            return
        student.wait()
        now = time.monotonic()
        if self._step >= WARM:
            self._alone[student.name].append(now - self._since)
        self._since = time.monotonic()

    def row(self) -> dict:
        """What was found, the same in every process."""
        for student in self._students:
            student.wait()
        processes = process_group.current()
        step_seconds = processes.settle("step", (time.monotonic() - self._mark) / TOGETHER, max)
        own = {name: float(np.median(found)) for name, found in self._alone.items() if found}
        found = processes.settle("step of each", own, shortest)
        alone = {student.name: found[student.name] for student in self._students}
        shares = self._placement.shares
        slowest = max(alone.values())
        for name, seconds in alone.items():
            idle = "" if shares is None else f", idle {1 - seconds / slowest:.1%}"
            log.info("%s: %.3g s a step%s", name, seconds, idle)
        return {
            "kind": self._placement.kind,
            "devices": None if shares is None else shares.devices,
            "step_seconds": step_seconds,
            "student_seconds": alone,
        }

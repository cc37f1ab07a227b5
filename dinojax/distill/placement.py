"""Several students of one teacher: what they must share, and which devices each of them gets."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dinojax.config import Config, ConfigError
from dinojax.config.saved import FAMILY
from dinojax.data import fields
from dinojax.data.example import Source
from dinojax.distill import shares
from dinojax.distill.shares import Shares
from dinojax.distributed import process_group, subgroup
from dinojax.files.drafts import write_json
from dinojax.ops.flops import count_flops
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout
from dinojax.train import program
from dinojax.train.program import Program
from dinojax.train.stage import Run, open_run
from dinojax.train.teacher import Teacher

log = logging.getLogger(__name__)

APART, TURN = "apart", "turn"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where everyone works: all students in turn on all devices, or each on its own."""

    kind: str
    teacher: Layout
    students: dict[str, Layout]
    shares: Shares | None  # when apart
    images: NamedSharding  # where the teacher's devices put what leads with images
    is_spread: bool  # whether that is spread over each student's devices already
    copied: int = 0  # bytes of boxes that every device gets in a step, where it is not

    def processes(self, name: str) -> tuple[int, ...]:
        """Those that have devices of a student, in order."""
        devices = self.students[name].mesh.devices.flat
        return tuple(sorted({device.process_index for device in devices}))

    def told(self) -> str:
        """In one line."""
        if self.shares is None:
            return f"in turn, each on all {self.teacher.mesh.size} devices"
        boxes = "every device gets all boxes of a step"
        copied = [f"{boxes}, {self.copied / 2**20:,.4g} MiB"] if self.copied else []
        return "apart: " + "; ".join([*self.shares.told(), *copied])


def costs(students: Mapping[str, Config], teacher: Teacher) -> dict[str, float]:
    """FLOPs of a step of each student, without the teacher's, counted on its traced program."""
    found, one = {}, mesh.make("dp", jax.devices()[:1])
    for name, config in students.items():
        plain = config.replaced({"model.attention": "plain"})
        built = program.build(plain, one, teacher, one)
        with mesh.use(one):
            found[name] = float(count_flops(built.step, *built.abstract_inputs()))
    return found


def placed(
    students: Mapping[str, Config],
    kind: str,
    cost: Mapping[str, float],
    devices: Sequence[jax.Device] | None = None,
) -> Placement:
    """The layouts of a kind of placement. cost: FLOPs or measured device seconds of a step.
    devices: None = those of the config.

    Raises ValueError for shares that do not fit.
    """
    first = next(iter(students.values()))
    strategy = first.distill.strategy
    section = first.mesh
    if strategy in (None, section.strategy):
        whole = mesh.from_section(section, devices)
    else:
        whole = mesh.make(strategy, section.devices if devices is None else devices)
    devices = list(whole.mesh.devices.flat)
    if kind == TURN:
        layouts = {
            n: mesh.from_section(c.mesh, devices, in_order=True) for n, c in students.items()
        }
        return Placement(TURN, whole, layouts, None, whole.sharding("image"), True)
    valid = {
        name: shares.fitting(c.batch_size, c.group_size, c.accumulate, len(devices))
        for name, c in students.items()
    }
    told = {name: c.distill.share for name, c in students.items()}
    if None in told.values():
        if any(told.values()):
            raise ConfigError(f"distill.share={told}: give one to every student, or to none.")
        found = shares.computed(cost, valid, len(devices))
    else:
        found = shares.given(told, cost, valid, total=len(devices))
    layouts, begin = {}, 0
    # Those first that divide by more powers of two: so each of their copies begins where a group of
    # as many devices does, and lies within one machine if it can.
    for name, number in sorted(found.devices.items(), key=lambda item: -(item[1] & -item[1])):
        own = devices[begin : begin + number]
        layouts[name] = mesh.from_section(students[name].mesh, own, in_order=True)
        begin += number
    layouts = {name: layouts[name] for name in students}
    images, is_spread = _outputs(whole, list(found.devices.values()))
    copied = 0 if is_spread else _bytes_of_boxes(first)
    return Placement(APART, whole, layouts, found, images, is_spread, copied)


def _bytes_of_boxes(config: Config) -> int:
    """Of a step with the largest boxes that the stage has."""
    side = max((config.data.box_size, *config.crops.more_box))
    return config.batch_size * side**2 * config.image.channels


def _outputs(whole: Layout, sizes: list[int]) -> tuple[NamedSharding, bool]:
    """Where the teacher puts its outputs: spread over each student where all shares are alike.

    Else on every device, and each student takes its part.
    """
    devices = np.array(list(whole.mesh.devices.flat), dtype=object)
    if len(set(sizes)) == 1 and sum(sizes) == len(devices):
        by_student = Mesh(
            devices.reshape(len(sizes), -1), ("student", "data"), axis_types=(AxisType.Auto,) * 2
        )
        return NamedSharding(by_student, PartitionSpec("data")), True
    return whole.sharding(), False


def programs(
    config: Config, placement: Placement, name: str, teacher: Teacher
) -> tuple[Program, ...]:
    """The programs of a student where it is placed, one per size of crops."""
    built = program.build_sizes(config, placement.students[name], teacher, placement.teacher)
    return tuple(
        dataclasses.replace(
            one,
            teacher_forward=dataclasses.replace(one.teacher_forward, is_spread=placement.is_spread),
        )
        for one in built
        if one.teacher_forward is not None
    )


def read_notes(path: Path) -> dict[str, Any]:
    """FAMILY of a run; ValueError for anything but what `Notes` writes."""
    content = fields.read(path)
    fields.field(content, "students", [str], where=path)
    for number, row in enumerate(fields.field(content, "measured", [dict], where=path)):
        where = f"{path}: measured[{number}]"
        fields.field(row, "kind", str, where=where)
        fields.field(row, "devices", ({str: int}, None), where=where)
        fields.field(row, "student_seconds", ({str: float}, None), where=where)
        fields.field(row, "step_seconds", float, where=where)
    return content


def open_runs(
    configs: Mapping[str, Config],
    placement: Placement,
    root: Path,
    *,
    source: Source,
    teacher: Teacher,
) -> dict[str, Run]:
    """Of all students, of which each process writes to those that it has devices of."""
    runs, processes = {}, process_group.current()
    part_of = {name: subgroup.of(processes, placement.processes(name)) for name in configs}
    for has_me in (True, False):
        for name in (n for n, part in part_of.items() if part.has_me == has_me):
            config = configs[name]
            built = programs(config, placement, name, teacher)
            with process_group.acting(part_of[name]):
                runs[name] = open_run(config, root / name, source, built, layout=placement.teacher)
        processes.settle("runs")  # torn checkpoints are set aside before others look for whole ones
    return {name: runs[name] for name in configs}


class Notes:
    """FAMILY: the students of a directory, and what was measured of placements."""

    def __init__(self, root: Path, students: Mapping[str, Any]):
        self._path = root / FAMILY
        self._students = list(students)
        kinds = sorted({device.device_kind for device in jax.devices()})
        self._key = {"students": self._students, "devices": [len(jax.devices()), *kinds]}
        content = read_notes(self._path) if self._path.exists() else {}
        self._root, self._before = root, content.get("students", [])
        same = all(content.get(key) == value for key, value in self._key.items())
        self.measured: list[dict] = content.get("measured", []) if same else []
        self._write()

    def tell(self) -> None:
        """Log who has joined and who has left since the last time."""
        for name in self._students:
            if self._before and name not in self._before:
                log.info("student %s is new; the others wait until it has caught up", name)
        for name in self._before:
            if name not in self._students:
                log.info("student %s does not learn now; %s stays", name, self._root / name)

    def add(self, row: dict) -> None:
        """A measured placement."""
        self.measured.append(row)
        self._write()

    def _write(self) -> None:
        if jax.process_index() == 0:
            write_json(self._path, {**self._key, "measured": self.measured})

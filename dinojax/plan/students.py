"""One plan of several students of one teacher: every program of a step, compiled for one target.

    python -m dinojax.plan.students '{"recipe": "distill_tiny", "overrides": [], "target": "cpu:8"}'

Prints as plan/one.py does. The programs are those of `dinojax distill`: the teacher's forward pass,
the handing out of images where students lie apart, and a step of each student.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dinojax import config as configs
from dinojax.config import Config, pick
from dinojax.distill import placement as placements
from dinojax.distill.placement import APART, TURN, Placement
from dinojax.distill.students import check_shared
from dinojax.plan import compile, compiler_output, targets
from dinojax.plan.targets import Target
from dinojax.sharding.mesh import Layout
from dinojax.train.program import Program
from dinojax.train.step import abstract_batch
from dinojax.train.teacher import open_teacher
from dinojax.train.teacher_forward import TeacherForward


def plan(
    *,
    recipe: str,
    target: str,
    overrides: list[str],
    students: Sequence[str],
    images: int | None = None,
    stage: str | None = None,
    size: int = 0,
    keep: str | None = None,
) -> dict:
    """Everything known of a step of these students; distill.place is `turn` or `apart`.

    As of `one.plan`, and `programs`: what is known of each, with `kept`, the bytes that stay on its
    devices while others run, `peak`, what its devices need when it runs, and `first`, the place of
    the first one among all.
    Raises ValueError for a recipe, target, strategy or shares that cannot be.
    """
    machine = targets.parse(target)
    many = load(recipe, machine, overrides, students, images=images, stage=stage)
    check_shared(many)
    first = next(iter(many.values()))
    config, crops = compile.sized(first, size)
    start = time.perf_counter()
    teacher = [open_teacher(config) for config in many.values()][0]  # refuses what differs
    devices = targets.devices(machine)
    kind = first.distill.place
    if kind not in (APART, TURN):
        raise ValueError(
            f"distill.place={kind} is measured in a run; {APART} or {TURN} is planned."
        )
    cost = placements.costs(many, teacher) if kind == APART else dict.fromkeys(many, 1.0)
    placement = placements.placed(many, kind, cost, devices)
    built = {n: placements.programs(c, placement, n, teacher)[size] for n, c in many.items()}
    found: dict[str, Any] = {
        "recipe": recipe,
        "stage": first.stage,
        "crops": {**crops, "reduction": 1},
        "overrides": overrides,
        "target": target,
        "place": placement.told(),
        "strategy": ", ".join(dict.fromkeys(p.layout.strategy for p in built.values())),
        "apart": kind == APART,
        "devices": machine.num_devices,
        "batch_size": config.batch_size,
        "versions": compiler_output.versions(),
    }
    own = {name: compile.sized(config, size)[0] for name, config in many.items()}
    programs = list(_programs(built, own, placement, machine, keep))
    found["flops"] = sum(program["flops"] for program in programs)
    found["programs"] = with_peaks(programs, apart=found["apart"])
    if lacking := [p for p in programs if "memory" not in p]:
        found["out_of_memory"] = f"{lacking[0]['name']}: {lacking[0]['out_of_memory']}"
    else:
        found["memory"] = {"peak": max(p["peak"] for p in found["programs"])}
        found["processor_seconds"] = sum(p["processor_seconds"] for p in programs)
    return found | compile.ending(found, machine, start)


def load(
    recipe: str,
    target: Target,
    overrides: list[str],
    students: Sequence[str],
    *,
    images: int | None,
    stage: str | None,
) -> dict[str, Config]:
    """Student -> its config of the stage, on the target's devices."""
    changes = targets.replaced(overrides, compile.changed(target, images))
    found = configs.load_students(recipe, changes)
    return {name: compile.on_target(pick(found[name], stage)) for name in students}


def with_peaks(programs: Sequence[Mapping[str, Any]], *, apart: bool) -> list[dict]:
    """The programs with `peak`, bytes of a device: their own and what others keep there.

    Everyone keeps something on every device; apart, of the students only one does. shared: what
    others keep and a program has among its own; alive: what nobody keeps for good.
    """
    total = max if apart else sum
    found = []
    for program in programs:
        others = [p for p in programs if p is not program]
        beside = sum(p["kept"] for p in others if not p["learns"])
        beside += program.get("alive", 0) - program.get("shared", 0)
        if not (apart and program["learns"]):
            beside += total([p["kept"] for p in others if p["learns"]] or [0])
        peak = {"peak": program["memory"]["peak"] + beside} if "memory" in program else {}
        found.append({**program, **peak})
    return found


def _programs(
    built: Mapping[str, Program],
    many: Mapping[str, Config],
    placement: Placement,
    machine: Target,
    keep: str | None,
):
    """What is known of each, the teacher's first; `kept`: bytes on each of its devices."""
    teacher_forward = next(iter(built.values())).teacher_forward
    assert teacher_forward is not None
    place = teacher_forward.places(placement.images, placement.teacher.sharding())
    forward = compile.of_forward(teacher_forward, place, machine, keep)
    kept = forward["state"]["teacher"]
    # What it made of a step is alive until all is dispatched of the next one.
    made = forward["memory"]["output"] if "memory" in forward else 0
    yield _named("teacher", placement.teacher, forward, kept=kept, learns=False, alive=made)
    if placement.images != placement.teacher.sharding("image"):
        handing = _handing(teacher_forward, placement, machine, keep)
        yield _named("images", placement.teacher, handing, kept=0, learns=False, alive=2 * made)
    for name, program in built.items():
        step = compile.of_step(many[name], program, machine, keep)
        assert program.teacher_forward is not None
        copied, shared = compile.prototypes_of_student(program.teacher_forward, program.layout)
        kept = sum(step["state"].values()) + copied
        seen = {"reduction": program.step.view_spec.reduction}
        where = list(placement.teacher.mesh.devices.flat)
        first = where.index(program.layout.mesh.devices.flat[0])
        named = _named(name, program.layout, step, kept=kept, learns=True, alive=made)
        yield {**named, **seen, "shared": shared, "first": first}


def _named(name: str, layout: Layout, found: dict, *, kept: int, learns: bool, alive: int) -> dict:
    where = {"devices": layout.mesh.size, "strategy": layout.strategy}
    where["mesh"] = dict(layout.mesh.shape)
    return {"name": name, **where, **found, "kept": kept, "learns": learns, "alive": alive}


def _handing(
    teacher_forward: TeacherForward, placement: Placement, machine: Target, keep: str | None
) -> dict:
    """Of SharedTeacher.hand_out, which puts the images of a step where students take them."""
    batch = abstract_batch(teacher_forward.batch_shape, placement.teacher.sharding("image"))
    handed = jax.jit(lambda batch: batch, out_shardings=placement.images).lower(batch)
    return {
        "flops": 0,
        "state": {},
        **compiler_output.kept(handed, machine, placement.teacher, keep),
    }


if __name__ == "__main__":
    compile.main(sys.argv[1], plan)

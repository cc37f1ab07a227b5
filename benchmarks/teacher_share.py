"""What students of one teacher save by learning together: FLOPs, time, idle devices, bytes moved.

    python -m benchmarks.teacher_share                       # distill_tiny, 1, 2 and 4 students
    python -m benchmarks.teacher_share --config distill_7b --teacher random:vit7b16 --devices 296

With --devices nothing is compiled: FLOPs are counted on traced programs, shares computed from them.

flops: of a step of N students together; baseline: of N distillations, each with its own teacher
forward. seconds: the same as median time of steps, all students in turn on all devices that jax
sees; equal: their losses agree exactly. idle: the largest idle share of a student at shares
computed from FLOPs, and (measured) by the median time of what one of its devices has to do;
neither where there are more students than devices.
bytes: what leaves the teacher's devices in a step for one student, and, as baseline, all patches
and all logits in the same dtype. N students are the recipe's, repeated as often as needed.
"""

import argparse
import itertools
import time

import jax
import numpy as np

from benchmarks.rows import row
from dinojax import config as configs
from dinojax.distill import placement as placements
from dinojax.distill import shares
from dinojax.distill.placement import TURN
from dinojax.ops.flops import count_flops
from dinojax.sharding import batch, gpu_memory, mesh
from dinojax.sharding.view import view_on
from dinojax.train.teacher import Teacher, open_teacher
from dinojax.train.teacher_forward import SharedTeacher, for_student


def students(recipe: str, overrides: list[str], number: int | None) -> dict:
    """Student -> config of its first stage; number: of them, None = those of the recipe."""
    found = {name: each[0] for name, each in configs.load_students(recipe, overrides).items()}
    if number is None:
        return found
    names = itertools.islice(itertools.cycle(found), number)
    return {f"{name}{i}": found[name] for i, name in enumerate(names)}


def forward_flops(placement: placements.Placement, configs_of: dict, teacher: Teacher) -> float:
    name = next(iter(configs_of))
    teacher_forward = placements.programs(configs_of[name], placement, name, teacher)[
        0
    ].teacher_forward
    assert teacher_forward is not None
    with mesh.use(placement.teacher):
        return float(count_flops(teacher_forward.forward, *teacher_forward.abstract_inputs()))


def costs_and_shares(found: dict, teacher: Teacher, devices: int) -> tuple[dict, dict]:
    """Of each student: FLOPs of a step, and the numbers of devices that it can have."""
    valid = {
        n: shares.fitting(c.batch_size, c.group_size, c.accumulate, devices)
        for n, c in found.items()
    }
    return placements.costs(found, teacher), valid


def by_model(config: str, found: dict, teacher: Teacher, devices: int) -> None:
    """Rows of FLOPs, idle shares and bytes, without compiling anything."""
    one = {n: c.replaced({"mesh.devices": 1, "model.attention": "plain"}) for n, c in found.items()}
    cost, valid = costs_and_shares(one, teacher, devices)
    forward = forward_flops(placements.placed(one, TURN, cost), one, teacher)
    what = {"config": config, "students": list(found), "devices": devices}
    together, apart = forward + sum(cost.values()), len(cost) * forward + sum(cost.values())
    flops = dict(value=together / 1e9, baseline=apart / 1e9, ratio=apart / together)
    row(name="teacher_share/flops", config=what, unit="GFLOP", **flops, teacher=forward / 1e9)
    if 1 < len(found) <= devices:
        got = shares.computed(cost, valid, devices)
        worst = max(got.idle.values())
        rest = dict(shares=got.devices, idle=got.idle)
        row(name="teacher_share/idle", config=what, value=worst, unit="share", **rest)
    moved(what, next(iter(one.values())), teacher)


def moved(what: dict, config, teacher: Teacher) -> None:
    """The row of bytes of a step that one student needs."""
    name = "one"
    placement = placements.placed({name: config}, TURN, {name: 1.0})
    teacher_forward = placements.programs(config, placement, name, teacher)[0].teacher_forward
    assert teacher_forward is not None
    teacher_features = teacher_forward.shapes()
    sent = [teacher_features.dino_BGZ, teacher_features.ibot_UMZ]
    value = sum(x.size * x.dtype.itemsize for x in sent)
    spec, size = teacher.networks.backbone.spec, teacher_features.dino_BGZ.dtype.itemsize
    crops = 2 * config.batch_size
    patches = teacher_forward.forward.view_spec.masks.side**2
    whole = crops * (1 + patches) * spec.width * size
    heads = teacher.networks.dino_head, teacher.networks.ibot_head  # none where it gives features
    rows = crops, teacher_features.ibot_UMZ.size // teacher_features.ibot_UMZ.shape[-1]
    made = [(n, head.spec.prototypes) for n, head in zip(rows, heads, strict=True) if head]
    logits = sum(n * prototypes * size for n, prototypes in made)
    row(
        name="teacher_share/bytes",
        config=what,
        value=value / 2**20,
        unit="MiB",
        baseline=(whole + logits) / 2**20,
        ratio=(whole + logits) / value,
        patches=whole / 2**20,
        logits=logits / 2**20,
        images=config.batch_size * config.data.box_size**2 * config.image.channels / 2**20,
    )


class Class:
    """Students placed and compiled, with a batch of noise."""

    def __init__(self, found: dict, kind: str, teacher: Teacher, cost: dict):
        self.placement = placements.placed(found, kind, cost)
        self.programs = {
            n: placements.programs(c, self.placement, n, teacher)[0] for n, c in found.items()
        }
        first = next(iter(self.programs.values()))
        self.school = SharedTeacher([first.teacher_forward], self.placement.images)  # type: ignore[list-item]
        rng = np.random.default_rng(0)
        shape = first.batch_shape
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        sizes = np.tile(np.int32(shape[1:3]), (shape[0], 1))
        named = {"images": images, "sizes": sizes}
        self.batch = batch.global_batch(self.placement.teacher, named)
        self.steps, self.states, self.heads = {}, {}, {}
        for name, built in self.programs.items():
            with mesh.use(built.layout):
                self.steps[name] = built.lower().compile()
                self.states[name] = built.new_state()
            self.heads[name] = self.school.heads(built.layout)

    def step(self, names, number: int) -> tuple[dict[str, float], dict[str, float]]:
        """(loss, seconds) of each student's step, taken one after another."""
        teacher_features, shared = (
            self.school(0, number, self.batch),
            self.school.hand_out(self.batch),
        )
        jax.block_until_ready((teacher_features, shared))
        losses, seconds = {}, {}
        for name in names:
            built, began = self.programs[name], time.perf_counter()
            assert built.teacher_forward is not None
            teacher_forward = built.teacher_forward
            own = view_on(shared, teacher_forward.student_sharding(built.layout))
            heard = for_student(
                teacher_features,
                self.heads[name],
                built.layout,
                is_spread=teacher_forward.is_spread,
            )
            taken = self.steps[name](self.states[name], own, built.now(number), heard)
            self.states[name], scalars = taken
            losses[name] = float(scalars["total"])
            seconds[name] = time.perf_counter() - began
        return losses, seconds


def measured(config: str, found: dict, teacher: Teacher, steps: int) -> None:
    """Rows of time: together and separate, and idle shares when apart."""
    what = {
        "config": config,
        "students": list(found),
        "batch": next(iter(found.values())).batch_size,
    }
    cost = dict.fromkeys(found, 1.0) if len(found) == 1 else placements.costs(found, teacher)
    together = Class(found, TURN, teacher, cost)
    alone = {name: Class({name: one}, TURN, teacher, {name: 1.0}) for name, one in found.items()}
    times: dict[str, list[float]] = {"together": [], "separate": []}
    equal = True
    for number in range(steps + 2):
        began = time.perf_counter()
        losses, _ = together.step(found, number)
        middle = time.perf_counter()
        apart = {name: alone[name].step([name], number)[0][name] for name in found}
        times["together"].append(middle - began)
        times["separate"].append(time.perf_counter() - middle)
        equal &= losses == apart
    value, baseline = (float(np.median(times[name][2:])) for name in ("together", "separate"))
    ratio = baseline / value
    names = dict(name="teacher_share/seconds", config=what, unit="s")
    row(**names, value=value, baseline=baseline, ratio=ratio, equal=equal)


def idle_measured(config: str, found: dict, teacher: Teacher, devices: int, steps: int) -> None:
    """The row of idle shares by the time of what one device of each student has to do.

    A student's batch is cut down to the images that one of its devices has, and its step taken on
    one device alone: simulated devices share their cores, so steps on all of them would only show
    what all work takes together. Collectives are left out.
    """
    cost, valid = costs_and_shares(found, teacher, devices)
    placed = shares.computed(cost, valid, devices)
    parts = {
        name: each.replaced(
            {"batch_size": each.batch_size // placed.devices[name], "mesh.devices": 1}
        )
        for name, each in found.items()
    }
    alone = {n: Class({n: part}, TURN, teacher, {n: 1.0}) for n, part in parts.items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(steps + 2):
        for name in found:
            times[name].append(alone[name].step([name], number)[1][name])
    # The seconds of a device, as with_idle takes them: a student's cost over its devices.
    seconds = {n: float(np.median(t[2:])) * placed.devices[n] for n, t in times.items()}
    idle = shares.with_idle(placed.devices, seconds).idle
    row(
        name="teacher_share/idle_measured",
        config={"config": config, "students": list(found), "devices": devices},
        value=max(idle.values()),
        unit="share",
        shares=placed.devices,
        by_model=placed.idle,
        idle=idle,
    )


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="distill_tiny")
    parser.add_argument("--teacher", default="random:tiny")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--students", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--devices", type=int, help="by model alone, for so many devices")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args(argv)
    gpu_memory.set_share()
    overrides = [f"distill.teacher={args.teacher}", *args.set]
    if args.devices:
        found = students(args.config, overrides, None)
        by_model(args.config, found, open_teacher(next(iter(found.values()))), args.devices)
        return
    for number in args.students:
        found = students(args.config, overrides, number)
        teacher = open_teacher(next(iter(found.values())))
        by_model(args.config, found, teacher, len(jax.devices()))
        measured(args.config, found, teacher, args.steps)
        if 1 < number <= len(jax.devices()):
            idle_measured(args.config, found, teacher, len(jax.devices()), args.steps)


if __name__ == "__main__":
    main()

"""One plan: a recipe's step compiled for one target and strategy, in a process of its own.

    python -m dinojax.plan.compile '{"recipe": "tiny", "overrides": [], "target": "cpu:8"}'

Prints one JSON object on its last line, {"refused": message} for what cannot be. That a step does
not fit is a result, not an error.
"""

import functools
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dinojax import config as configs
from dinojax.config import Config, stages
from dinojax.config.computed import assumed
from dinojax.config.formulas import Facts
from dinojax.losses.blockwise_logits import num_blocks
from dinojax.losses.sharded import Place
from dinojax.ops.attention import OPAQUE
from dinojax.ops.flops import count_flops
from dinojax.plan import compiler_output, formula, targets, text_step
from dinojax.plan.targets import GIB, Target
from dinojax.sharding import mesh
from dinojax.train import program
from dinojax.train.program import Program
from dinojax.train.teacher import prototypes
from dinojax.train.teacher_forward import TeacherForward

TREES = ("student", "ema", "gram", "opt_state", "centers")
# Which trees of the state make a component.
NAMES = {"opt_state": "optimizer"}


def main(argument: str, function: Callable[..., dict]) -> None:
    """Answer what was asked, a JSON object of arguments, with the last line that is printed."""
    asked = json.loads(argument)
    try:
        found = function(**asked)
    except ValueError as error:
        found = {"refused": str(error)}
    print(json.dumps(found), flush=True)


def plan(
    *,
    recipe: str,
    target: str,
    overrides: list[str],
    images: int | None = None,
    stage: str | None = None,
    size: int = 0,
    keep: str | None = None,
) -> dict:
    """Everything known of the step before it runs. images: per device, None = the recipe's batch.
    stage: of the recipe, None = its first; size: which of those that its steps may have.
    keep: a folder of what compilers found (compiler_output.py), None = everything is compiled.

    Of a distillation: of the student's step and of the teacher's forward pass before it.

    Raises ValueError for a recipe, target or strategy that cannot be.
    """
    machine = targets.parse(target)
    config = load(recipe, machine, overrides, images=images, stage=stage)
    config, crops = sized(config, size)
    layout = mesh.from_section(config.mesh, targets.devices(machine))
    built = program.build(config, layout)
    seen = text_step.crops(crops) if config.text.enabled else _as_seen(crops, built)
    found: dict[str, Any] = {
        "recipe": recipe,
        "stage": config.stage,
        "crops": seen,
        "overrides": overrides,
        "target": target,
        "strategy": layout.strategy,
        "mesh": dict(layout.mesh.shape),
        "devices": machine.num_devices,
        "batch_size": config.batch_size,
        "versions": compiler_output.versions(),
    }
    start = time.perf_counter()
    found |= of_step(config, built, machine, keep)
    if (teacher_forward := built.teacher_forward) is not None:
        place = teacher_forward.places(teacher_forward.student_sharding(layout), layout.sharding())
        own = of_forward(teacher_forward, place, machine, keep)
        found = _with_teacher(found, own, prototypes_of_student(teacher_forward, layout))
    return found | ending(found, machine, start)


def _as_seen(crops: dict, built: Program) -> dict:
    return {**crops, "reduction": built.step.view_spec.reduction}


def of_step(config: Config, built: Program, machine: Target, keep: str | None) -> dict:
    """What is known of a program's step alone; without `memory` if it is too large.

    Of a text stage without a closed form of what is sent for weights and gradients.
    """
    with mesh.use(built.layout):
        inputs = built.abstract_inputs()
        found = {
            "flops": count_flops(built.step, *inputs),
            "state": state_bytes(inputs[0]),
            "batch_bytes": device_bytes(inputs[1]),
        }
        if config.text.enabled:
            objective: Any = built.step.objective  # a TextObjective
            outputs = objective.networks.text_tower.spec.outputs
            found |= {"blocks": text_step.blocks(config, built.layout, outputs)}
        else:
            found |= {
                "blocks": _blocks(config, built),
                "closed_form": formula.wire(built),
                "reduce": {"chosen": config.precision.reduce, "bytes": formula.summed(built)},
            }
        return found | compiler_output.kept(built.lower(), machine, built.layout, keep)


def of_forward(
    teacher_forward: TeacherForward, place: Any, machine: Target, keep: str | None
) -> dict:
    """The same of a teacher's forward pass. place: shardings of what comes out."""
    with mesh.use(teacher_forward.layout):
        inputs = teacher_forward.abstract_inputs()
        flops = count_flops(teacher_forward.forward, *inputs)
    own = compiler_output.kept(teacher_forward.lower(place), machine, teacher_forward.layout, keep)
    if "memory" in own:  # the program takes no prototypes, but they lie there as well
        memory = own["memory"]
        own["memory"] = {**memory, "peak": memory["peak"] + device_bytes(prototypes(inputs[0]))}
    known = {"flops": flops, "closed_form": formula.forward_wire(teacher_forward)}
    return {**known, "state": {"teacher": device_bytes(inputs[0])}, **own}


def prototypes_of_student(teacher_forward: TeacherForward, layout: mesh.Layout) -> tuple[int, int]:
    """Bytes of the teacher's prototypes on a device of a student: of its own, and shared ones.

    Where both keep them alike they are the same arrays (`SharedTeacher.heads`), and the teacher's.
    """
    own, theirs = (
        prototypes(teacher_forward.teacher.abstract(at)) for at in (layout, teacher_forward.layout)
    )
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), own, theirs)
    size = device_bytes(own)
    return (0, size) if all(jax.tree.leaves(same)) else (size, 0)


def ending(found: dict, machine: Target, start: float) -> dict:
    """Whether it fits, and what it took to know. start: time.perf_counter() before."""
    peak = found["memory"]["peak"] if "memory" in found else float("inf")
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    seconds = time.perf_counter() - start
    return {
        "fits": peak <= machine.chip.usable,
        "compile_seconds": round(seconds, 1),
        "host_gib": round(gib, 2),
    }


def _with_teacher(found: dict, own: dict, heads: tuple[int, int]) -> dict:
    """What was found of a student's step, with the teacher's program that runs before it.

    The state of either stays where it is while the other one runs. heads: as
    `prototypes_of_student`.
    """
    state, teacher = sum(found["state"].values()), own["state"]["teacher"]
    found = {**found, "flops": found["flops"] + own["flops"]}
    found["state"] = {**found["state"], "teacher": teacher}
    theirs = own["closed_form"]
    found["closed_form"] = {k: v + theirs[k] for k, v in found["closed_form"].items()}
    if "memory" not in own or "memory" not in found:
        told = own if "memory" not in own else found
        return {k: v for k, v in found.items() if k != "memory"} | {
            "out_of_memory": told["out_of_memory"]
        }
    memory = found["memory"]
    copied, shared = heads
    peak = max(memory["peak"] + teacher - shared, own["memory"]["peak"] + state + copied)
    found["memory"] = {**memory, "peak": peak}
    found["processor_seconds"] += own["processor_seconds"]
    return {**found, "collectives": found["collectives"] + own["collectives"]}


def sized(config: Config, size: int) -> tuple[Config, dict]:
    """The config with one of its sizes of crops, and pixels and share of the steps of that size."""
    keys = stages.sizes(config.crops, config.data.box_size)
    shares = stages.rates(config.crops.more_rates)
    if not 0 <= size < len(keys):
        raise ValueError(f"size={size}: the steps of this stage have {len(keys)} sizes.")
    names = ("global", "local", "gram", "box")
    pixels = dict(zip(names, keys[size].values(), strict=True))
    return config.replaced(keys[size]), {**pixels, "share": shares[size], "sizes": len(keys)}


def load(
    recipe: str, target: Target, overrides: list[str], *, images: int | None, stage: str | None
) -> Config:
    """The recipe on the target's devices, with the attention of `on_target`.

    A recipe that computes its values is told the target's memory, as a run is told its device's.
    """
    given = targets.replaced(overrides, changed(target, images))
    measure = functools.partial(_facts, target=target)
    return on_target(configs.load(recipe, given, stage=stage, measure=measure))


def _facts(values: Mapping[str, Any], *, target: Target) -> Facts:
    facts = assumed(values)._replace(platform=target.chip.platform)
    if facts.memory is None and math.isfinite(target.chip.usable):
        facts = facts._replace(memory=target.chip.usable)
    return facts


def changed(target: Target, images: int | None) -> list[str]:
    """Overrides for a target. images: on a device, None = the recipe's batch."""
    changes = [f"mesh.devices={target.num_devices}"]
    if images is not None:
        changes.append(f"batch_size={images * target.num_devices}")
    return changes


def on_target(config: Config) -> Config:
    """Kernels of other libraries hide their products and want the hardware, so a step that would
    have one is planned with the plain attention."""
    is_open = config.model.attention in ("auto", *OPAQUE)
    return config.replaced({"model.attention": "plain"}) if is_open else config


def state_bytes(state) -> dict[str, int]:
    """Bytes on one device of each tree of the state."""
    return {NAMES.get(name, name): device_bytes(getattr(state, name)) for name in TREES}


def device_bytes(tree) -> int:
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        size = 1
        for side in shape:
            size *= side
        total += size * leaf.dtype.itemsize
    return total


def _blocks(config: Config, built: Program) -> dict[str, dict]:
    """Of each head: rows and prototypes a device works on, blocks, and bytes of one block."""
    layout, crops = built.layout, config.crops
    images = config.batch_size // layout.num_shards
    tensor, devices = layout.mesh.shape["tensor"], Place(layout).num_gathered
    spec = built.step.view_spec
    masked = spec.masks.num_masked * images // config.group_size
    found = {}
    for name, rows, teacher in (
        ("dino", (2 + crops.num_local) * images, 2 * images),
        ("ibot", masked, masked),
    ):
        head = getattr(config, f"{name}_head")
        columns, rows = head.prototypes // tensor, rows * tensor // config.accumulate
        parts = num_blocks(rows, columns, devices=devices)
        teacher_parts = num_blocks(teacher * tensor, columns)
        found[name] = {
            "rows": rows,
            "prototypes": columns,
            "blocks": parts,
            "logits": 4 * rows * columns // parts,
            "sinkhorn": 4 * teacher * tensor * columns // teacher_parts,
        }
    return found


if __name__ == "__main__":
    main(sys.argv[1], plan)

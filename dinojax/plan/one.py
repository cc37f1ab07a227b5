"""One plan: a recipe's step compiled for one target and strategy, in a process of its own.

    python -m dinojax.plan.one '{"recipe": "tiny", "overrides": [], "target": "cpu:8"}'

Prints one JSON object on its last line, {"refused": message} for what cannot be. That a step does
not fit is a result, not an error.
"""

import json
import re
import resource
import sys
import time
from typing import Any

import jax

from dinojax import config as configs
from dinojax import mesh, program
from dinojax.config import Config
from dinojax.losses.scores import num_blocks
from dinojax.plan import targets
from dinojax.plan.count import compiled_memory, count_flops
from dinojax.plan.hlo import collectives
from dinojax.plan.targets import GIB, OPTIONS, Target
from dinojax.program import Program
from dinojax.teaching import Teaching

TREES = ("student", "ema", "gram", "opt_state", "centers")
# Which trees of the state make a component.
NAMES = {"opt_state": "optimizer"}


def main(argument: str) -> None:
    asked = json.loads(argument)
    try:
        found = plan(**asked)
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
) -> dict:
    """Everything known of the step before it runs. images: per device, None = the recipe's batch.
    stage: of the recipe, None = its first.

    Raises ValueError for a recipe, target or strategy that cannot be.
    """
    machine = targets.parse(target)
    config = load(recipe, machine, overrides, images=images, stage=stage)
    layout = mesh.from_section(config.mesh, targets.devices(machine))
    built = program.build(config, layout)
    found: dict[str, Any] = {
        "recipe": recipe,
        "stage": config.stage,
        "overrides": overrides,
        "target": target,
        "strategy": layout.strategy,
        "mesh": dict(layout.mesh.shape),
        "devices": machine.num_devices,
        "batch_size": config.batch_size,
        "versions": _versions(),
    }
    start = time.perf_counter()
    with mesh.use(layout):
        inputs = built.abstract_inputs()
        flops = count_flops(built.step, *inputs)
        found |= {"flops": flops, "state": state_bytes(inputs[0]), "blocks": _blocks(config, built)}
        found["batch_bytes"] = _device_bytes(inputs[1])
        lowered = built.lower()
        try:
            compiled = lowered.compile(compiler_options=OPTIONS[machine.chip.platform])
        except jax.errors.JaxRuntimeError as error:
            found |= {"fits": False, "out_of_memory": _needed(error)}
        else:
            memory = compiled_memory(compiled)
            if machine.chip.platform == "cpu":  # its compiler leaves temporary arrays out
                memory["peak"] = memory["argument"] + memory["temp"]
            text = compiled.as_text() or ""
            found |= {"memory": memory, "fits": memory["peak"] <= machine.chip.usable}
            found["collectives"] = [vars(one) for one in collectives(text)]
    if built.teaching is not None:
        _add_teacher(found, built.teaching, machine)
    found["compile_seconds"] = round(time.perf_counter() - start, 1)
    found["host_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2)
    return found


def _add_teacher(found: dict, teaching: Teaching, target: Target) -> None:
    """The frozen teacher's part of a step: its weights stay, its forward pass comes first."""
    inputs = teaching.abstract_inputs()
    with mesh.off(), mesh.use(teaching.layout):
        found["flops"] += count_flops(teaching.forward, *inputs)
    state = sum(found["state"].values())
    found["state"]["teacher"] = _device_bytes(inputs[0])
    if "memory" not in found:
        return
    layout = teaching.layout
    place = teaching.places(layout.sharding("image"), layout.sharding())
    compiled = teaching.lower(place).compile(compiler_options=OPTIONS[target.chip.platform])
    memory, own = found["memory"], compiled_memory(compiled)
    if target.chip.platform == "cpu":
        own["peak"] = own["argument"] + own["temp"]
    memory["argument"] += found["state"]["teacher"]
    memory["peak"] = max(memory["peak"] + found["state"]["teacher"], own["peak"] + state)
    found["fits"] = memory["peak"] <= target.chip.usable
    found["collectives"] += [vars(one) for one in collectives(compiled.as_text() or "")]


def load(
    recipe: str, target: Target, overrides: list[str], *, images: int | None, stage: str | None
) -> Config:
    """The recipe on the target's devices. Kernels of other libraries hide their products and
    want the hardware, so attention is the plain one unless the recipe names another."""
    config = configs.load(recipe, overrides, stage=stage)
    changes = [f"mesh.devices={target.num_devices}"]
    if config.model.attention == "auto":
        changes.append("model.attention=plain")
    if images is not None:
        changes.append(f"batch_size={images * target.num_devices}")
    return configs.load(recipe, targets.replaced(overrides, changes), stage=stage)


def state_bytes(state) -> dict[str, int]:
    """Bytes on one device of each tree of the state."""
    return {NAMES.get(name, name): _device_bytes(getattr(state, name)) for name in TREES}


def _device_bytes(tree) -> int:
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
    tensor = layout.mesh.shape["tensor"]
    spec = built.step.view_spec
    masked = spec.masks.num_masked * images // config.group_size
    found = {}
    for name, rows, teacher in (
        ("dino", (2 + crops.num_local) * images, 2 * images),
        ("ibot", masked, masked),
    ):
        head = getattr(config, f"{name}_head")
        columns, rows = head.prototypes // tensor, rows * tensor // config.accumulate
        parts = num_blocks(rows, columns)
        teacher_parts = num_blocks(teacher * tensor, columns)
        found[name] = {
            "rows": rows,
            "prototypes": columns,
            "blocks": parts,
            "logits": 4 * rows * columns // parts,
            "sinkhorn": 4 * teacher * tensor * columns // teacher_parts,
        }
    return found


def _needed(error: Exception) -> str:
    """What the compiler says about memory; any other error goes on."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message and "exceeds available" not in message:
        raise error
    size = re.search(r"[\d.]+[GM] exceeds available HBM \([\d.]+[GM]\)", message)
    return size[0] if size else message.splitlines()[0][:300]


def _versions() -> dict[str, str]:
    import importlib.metadata as metadata

    found = {"jax": jax.__version__}
    for name in ("libtpu", "jax-cuda12-pjrt"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(sys.argv[1])

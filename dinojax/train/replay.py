"""`dinojax replay RUN/autopsy/STEP`: takes a step again that was not finite; says where it broke.

The images come from the autopsy folder, masks and crops from the seed and the step, the weights
from the checkpoint with the fewest updates in between: none after a stop, for bad steps change
nothing.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import config as configs
from dinojax.checkpoint.manager import Checkpoints
from dinojax.config import Config, ConfigError, stages
from dinojax.configs.keys import ALL_TERMS
from dinojax.data import fields
from dinojax.sharding import mesh
from dinojax.sharding.batch import global_batch, split_batch
from dinojax.train import initialize, program
from dinojax.train.program import Program
from dinojax.train.text_step import TextStep


def replay(folder: str | Path) -> dict[str, Any]:
    """Print and return {"step", "updates_apart", "scalars", "bad"} of the step taken again.

    bad: names of weights, gradients and images whose numbers are not finite. Raises ConfigError
    if the folder is no complete autopsy.
    """
    folder = Path(folder)
    if not (folder / "step.json").exists():
        raise ConfigError(f"{folder} holds no step.json; name a folder RUN/autopsy/STEP.")
    path = folder / "step.json"
    seen = fields.read(path)
    for name, kind in (("step", int), ("culprit", str), ("scalars", {str: (float, str)})):
        fields.field(seen, name, kind, where=path)
    config = configs.read(folder / "config.json")
    layout = mesh.from_section(config.mesh)
    programs = program.build_sizes(config, layout)
    draw = stages.SizeDraw(programs[0].seed, config.crops.more_rates)
    built = programs[draw(seen["step"] - 1)]
    with mesh.use(layout), jax.default_matmul_precision(config.precision.matmul):
        state, apart = _state(built, folder, seen["step"], config)
        batch = global_batch(layout, _batch(folder))
        now = built.now(seen["step"] - 1)
        teacher = (
            None if built.teacher_forward is None else built.teacher_forward.teacher.load(layout)
        )
        look = jax.jit(functools.partial(_look, built))
        scalars, finite = jax.device_get(look(state, batch, now, teacher))
    bad = [name for name, fine in _named(finite) if not fine]
    found = {"step": seen["step"], "updates_apart": apart, "scalars": scalars, "bad": bad}
    _print(found, seen)
    return found


def _look(built: Program, state, batch, now, teacher):
    """The scalars of the step, and for every array that goes in or comes out if it is finite."""
    step = built.step
    if isinstance(step, TextStep):
        return _look_at_text(step, state, batch)
    views = step.views(state, batch)
    parts = split_batch(step.inputs(state, views, batch), step.accumulate)
    targets, _ = step.targets(state, parts, now, teacher)
    grads, terms = step.gradients(state.student, parts, targets, now)
    looked_at = {
        "crops": {"global": views.global_BGHWC, "local": views.local_BLHWC},
        "student weights": state.student,
        "ema weights": state.ema,
        "targets": {"dino": targets.dino, "ibot": targets.ibot},
        "gradients": grads,
    }
    return terms, jax.tree.map(_is_finite, looked_at)


def _look_at_text(step: TextStep, state, batch):
    views = step.views(state, batch)
    parts = split_batch(step.inputs(state, views, batch), step.accumulate)
    grads, terms = step.gradients(state.student, state.ema, parts)
    looked_at = {
        "crops": views.global_BGHWC,
        "student weights": state.student,
        "frozen weights": state.ema,
        "gradients": grads,
    }
    return terms, jax.tree.map(_is_finite, looked_at)


def _is_finite(x):
    return jnp.all(jnp.isfinite(x))


def _state(built: Program, folder: Path, number: int, config: Config):
    """(the state before step `number`, updates between its weights and the true ones)."""
    run_dir = folder.resolve().parent.parent
    names = [path.name for path in folder.resolve().parent.iterdir() if path.name.isdigit()]
    bad = {int(name) - config.start.steps_before for name in names}
    directory = run_dir / "checkpoints" / config.stage
    saved = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]

    def apart(step: int) -> int:
        between = range(min(step, number - 1) + 1, max(step, number - 1) + 1)
        return sum(n not in bad for n in between)

    best = min([0, *saved], key=apart)
    if best == 0:
        state = initialize.first_state(built, config, run_dir)
    else:
        checkpoints = Checkpoints(directory, keep_last=len(saved), keep_every=None)
        with contextlib.closing(checkpoints):
            state = checkpoints.restore(built.abstract_state(), best)
    before = jax.device_put(jnp.asarray(number - 1, jnp.int32), state.step.sharding)
    return dataclasses.replace(state, step=before), apart(best)


def _batch(folder: Path) -> dict[str, np.ndarray]:
    """The images and sizes of all processes, in their order."""
    paths = sorted(folder.glob("batch-*.npz"), key=lambda path: int(path.stem.split("-")[1]))
    if not paths:
        raise ConfigError(f"{folder} holds no batch-0.npz; without the images there is no replay.")
    parts = [np.load(path) for path in paths]
    names = [name for name in parts[0].files if name != "ids"]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _named(tree) -> list[tuple[str, bool]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), bool(fine))
        for path, fine in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _print(found: dict, seen: dict) -> None:
    apart = found["updates_apart"]
    weights = (
        "the weights of then" if not apart else f"weights {apart} updates away (no nearer one)"
    )
    print(f"step {found['step']} with {weights}; it was: {seen['culprit']}")
    for name in (*ALL_TERMS, "total"):
        if name in found["scalars"]:
            then, again = seen["scalars"][name], float(found["scalars"][name])
            print(f"  {name:12s} then {float(then):.6g}  again {again:.6g}")
    print("not finite:" if found["bad"] else "everything is finite now")
    for name in found["bad"]:
        print(f"  {name}")

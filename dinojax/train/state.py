"""What a run carries from step to step, created directly in its sharding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from dinojax.models.params import _check, _placed, init_params
from dinojax.sharding.mesh import Layout
from dinojax.train.objective import Objective
from dinojax.train.text_objective import TextObjective


@struct.dataclass
class State:
    """Everything a step reads and writes. All floats are float32."""

    step: jax.Array  # int32, updates done
    key: jax.Array  # PRNG key of the seed
    student: dict  # {"backbone", "dino_head", "ibot_head"}, heads of guides: takes the gradient
    # The student's moving average, without guides: gives targets, is evaluated and exported. Of a
    ema: dict  # text stage the frozen parts instead, {"backbone"} and maybe {"text_tower"}
    gram: dict | None  # a frozen earlier ema, backbone only
    opt_state: tuple
    # {"dino" [K], "ibot" [K]} with softmax centering, and prototypes of guides; else empty
    centers: dict
    bad_steps: jax.Array  # int32, steps in a row, up to the last, that were not finite


def _init(objective: Objective | TextObjective, optimizer, key: jax.Array) -> State:
    if isinstance(objective, TextObjective):
        return _new(key, *objective.init(key), optimizer, centers={}, gram=None)
    student = init_params(objective, key)
    centers: dict = {}
    if objective.losses.centering == "softmax" and not objective.is_features:
        heads = {"dino": objective.dino_head, "ibot": objective.ibot_head}
        centers = {name: jnp.zeros(head.spec.prototypes) for name, head in heads.items()}
    if objective.guidance is not None:
        centers |= objective.guidance.new_prototypes(key)
    frozen = objective.gram is not None and objective.gram.teacher == "frozen"
    gram = jax.tree.map(jnp.copy, student["backbone"]) if frozen else None
    followed = {name: tree for name, tree in student.items() if name not in objective.guide_heads}
    ema = jax.tree.map(jnp.copy, followed)
    return _new(key, student, ema, optimizer, centers=centers, gram=gram)


def _new(key, student, ema, optimizer, *, centers: dict, gram: dict | None) -> State:
    return State(
        step=jnp.zeros((), jnp.int32),
        key=key,
        student=student,
        ema=ema,
        gram=gram,
        opt_state=optimizer.init(student),
        centers=centers,
        bad_steps=jnp.zeros((), jnp.int32),
    )


def abstract(objective: Objective | TextObjective, optimizer, layout: Layout) -> State:
    """Shapes, dtypes and shardings of a State, without any memory.

    Raises ValueError if a parameter cannot be sharded over the mesh, naming all that cannot.
    """
    boxed = jax.eval_shape(lambda: _init(objective, optimizer, jax.random.key(0)))
    _check(layout, boxed.student)
    return _placed(layout, boxed)


def create(objective: Objective | TextObjective, optimizer, layout: Layout, seed: int) -> State:
    """A new State; every device makes only its own part."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract(objective, optimizer, layout))

    def init(key):
        return nn.meta.unbox(_init(objective, optimizer, key))

    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))

"""One training update, as a pure function of (state, batch, now). Reads no config."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from dinojax.augment.spec import ViewSpec
from dinojax.augment.views import Views, make_views
from dinojax.ops import rng
from dinojax.sharding import mesh
from dinojax.sharding.batch import merge_batch, split_batch
from dinojax.train import health
from dinojax.train.batch_types import Inputs, TeacherFeatures, TeacherOutputs
from dinojax.train.objective import Objective
from dinojax.train.optim import part_norms
from dinojax.train.state import State


@dataclasses.dataclass(frozen=True)
class Step:
    """`step(state, batch, now) -> (state, scalars)`; train.py compiles it with its shardings.

    Its operations carry the name of their phase (jax.named_scope), the innermost counts: crops,
    teacher, targets, student, losses, optimizer, health. Profiles and benchmarks.roofline sort by
    them.

    batch: {"images" uint8 [B, S, S, C], "sizes" int32 [B, 2]}; now: the schedules' values at this
    step as scalars, so that they are exact and a change of schedule never recompiles. teacher: of
    the objective's frozen networks, if it has any, their parameters or the features they gave.
    """

    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    view_spec: ViewSpec
    accumulate: int = 1

    def __call__(self, state: State, batch: dict, now: dict, teacher=None) -> tuple[State, dict]:
        return self.update(state, self.inputs(state, self.views(state, batch), batch), now, teacher)

    def views(self, state: State, batch: dict) -> Views:
        """Crops and masks of the step that the state is about to take."""
        return _views(jax.random.fold_in(state.key, state.step), batch, self.view_spec)

    def inputs(self, state: State, views: Views, batch: dict) -> Inputs:
        """Views with the keys of their groups, and the rows of guides."""
        inputs = _inputs(jax.random.fold_in(state.key, state.step), views)
        guidance = self.objective.guidance
        if guidance is None:
            return inputs
        metadata = {name.removeprefix(META): batch[name] for name in batch if name.startswith(META)}
        return dataclasses.replace(inputs, guides=guidance.rows(metadata))

    def update(self, state: State, inputs: Inputs, now: dict, teacher=None) -> tuple[State, dict]:
        """Teacher targets -> student gradients -> optimizer -> moving average.

        A step whose loss or gradient is not finite changes nothing but the step number.
        """
        with jax.named_scope("crops"):
            parts = split_batch(inputs, self.accumulate)
        targets, (centers, seen) = self.targets(state, parts, now, teacher)
        grads, terms = self.gradients(state.student, parts, targets, now)
        state, told = self.applied(state, grads, terms["total"], centers, now)
        return state, {**terms, **seen, **told}

    @jax.named_scope("optimizer")
    def applied(self, state: State, grads: dict, total, centers: dict, now: dict):
        """(The next state, scalars); what is not finite changes nothing but the step's number."""
        norms = {f"grad_norm/{part}": norm for part, norm in part_norms(grads).items()}
        ok = health.all_finite({"total": total, **norms})

        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.student, now=now)
        student = optax.apply_updates(state.student, updates)
        followed = {name: student[name] for name in state.ema}
        ema = jax.tree.map(functools.partial(_towards, 1.0 - now["momentum"]), state.ema, followed)
        bad_steps = jnp.where(ok, 0, state.bad_steps + 1)

        new = dict(student=student, ema=ema, opt_state=opt_state, centers=centers)
        old = {name: getattr(state, name) for name in new}
        kept = health.keep_if(ok, new, old)
        moved = health.relative_change(kept["ema"]["backbone"], state.ema["backbone"])
        state = dataclasses.replace(state, **kept, step=state.step + 1, bad_steps=bad_steps)
        return state, {**norms, "ema_change": moved, "bad_steps": bad_steps}

    @jax.named_scope("targets")
    def targets(self, state: State, parts: Inputs, now: dict, teacher=None):
        """Targets of all micro-batches together, with (the next centers, health of the teacher).

        Sinkhorn runs once, over the whole batch.
        """
        whole: TeacherOutputs | TeacherFeatures
        if isinstance(teacher, TeacherFeatures):
            whole, teacher = teacher, teacher.heads
        else:
            teacher = state.ema if teacher is None else teacher
            whole = _outputs(self.objective, teacher, state.gram, parts)
        guides = merge_batch(parts.guides) if parts.guides else {}
        targets, centers = self.objective.assign(teacher, whole, state.centers, now, guides)
        seen = self.objective.teacher_health(whole, targets)
        rows = split_batch(dataclasses.replace(targets, columns=None), self.accumulate)
        key = rng.stream(jax.random.fold_in(state.key, state.step), "sigreg")
        shared = self.objective.batch_statistics.shared(key, state.centers)
        return dataclasses.replace(rows, columns=targets.columns, whole=shared), (centers, seen)

    @jax.named_scope("student")
    def gradients(self, student: dict, parts: Inputs, targets, now: dict):
        """Mean gradient and terms over the micro-batches, one in memory at a time.

        Losses of statistics over the whole batch take these from a forward pass of their own
        where there are several micro-batches.
        """
        shared = {"columns": targets.columns, "whole": targets.whole}
        rows = dataclasses.replace(targets, columns=None, whole={})

        def gradient(part):
            inputs, rows = part
            grad = jax.grad(self.objective.loss, has_aux=True)
            return grad(student, inputs, dataclasses.replace(rows, **shared), now)

        if self.accumulate == 1:
            return _map(gradient, (parts, rows), 1, squeeze=True)
        if self.objective.batch_statistics.are_needed:
            found = jax.lax.map(
                lambda inputs: self.objective.statistics(student, inputs, targets.whole, now),
                parts,
            )
            means = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
            whole = {"statistics": means, "num_parts": float(self.accumulate)}
            shared["whole"] = {**targets.whole, **whole}

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(part)), None

        shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], (parts, rows)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (parts, rows))
        return jax.tree.map(lambda x: x / self.accumulate, total)


@dataclasses.dataclass(frozen=True)
class Forward:
    """A frozen teacher's forward pass: `forward(teacher, key, number, batch) -> TeacherFeatures`.

    A program of its own, on devices and with shardings of its own; it makes the same crops as the
    student's step, of which it needs the global ones. teacher: parameters; key: of the seed;
    number: of the step, from 0.
    """

    objective: Objective
    view_spec: ViewSpec
    accumulate: int = 1

    def __call__(
        self, teacher: dict, key: jax.Array, number: jax.Array, batch: dict
    ) -> TeacherFeatures:
        key = jax.random.fold_in(key, number)
        inputs = _inputs(key, _views(key, batch, self.view_spec))
        with jax.named_scope("crops"):
            parts = split_batch(inputs, self.accumulate)
        return self.objective.teacher_features(_outputs(self.objective, teacher, None, parts))


META = "metadata/"  # before a column's name, in a batch


def abstract_batch(
    shape: tuple[int, int, int, int],
    sharding,
    context: int | None = None,
    metadata: Mapping[str, jnp.dtype] | None = None,
) -> dict:
    """What a step takes of images, as shapes and shardings. shape: B, S, S, C of all devices.

    context: tokens of a caption, where images have some; metadata: name -> dtype of the columns
    that guides need.
    """
    columns = {
        META + name: jax.ShapeDtypeStruct((shape[0],), dtype, sharding=sharding)
        for name, dtype in (metadata or {}).items()
    }
    batch = columns | {
        "images": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding),
        "sizes": jax.ShapeDtypeStruct((shape[0], 2), jnp.int32, sharding=sharding),
    }
    if context is not None:
        ids = (shape[0], context)
        batch["tokens"] = jax.ShapeDtypeStruct(ids, jnp.int32, sharding=sharding)
    return batch


@jax.named_scope("crops")
def _views(key: jax.Array, batch: dict, spec: ViewSpec) -> Views:
    per_group = functools.partial(functools.partial, mesh.per_group)
    return make_views(key, batch["images"], batch["sizes"], spec, per_group=per_group)


@jax.named_scope("crops")
def _inputs(key: jax.Array, views: Views) -> Inputs:
    num_groups = views.masked_UM.shape[0]
    return Inputs(
        views=views,
        drop_keys_U=rng.group_keys(key, "drop", num_groups),
        rope_keys_U=rng.group_keys(key, "rope", num_groups),
    )


@jax.named_scope("teacher")
def _outputs(objective: Objective, teacher: dict, gram, parts: Inputs) -> TeacherOutputs:
    """Of all micro-batches together; parts: as `mesh.split_batch` makes them."""

    def outputs(part):
        return objective.teacher_outputs(teacher, gram, part)

    return merge_batch(_map(outputs, parts, jax.tree.leaves(parts)[0].shape[0]))


def _towards(share, ema, student):
    """Moves a share of the way; exactly nowhere when both are equal, as frozen weights are."""
    return ema + share * (student - ema)


def _map(function, parts, num_parts: int, *, squeeze: bool = False):
    """function over the leading axis of micro-batches; one micro-batch needs no loop."""
    if num_parts > 1:
        return jax.lax.map(function, parts)
    out = function(jax.tree.map(lambda x: x[0], parts))
    return out if squeeze else jax.tree.map(lambda x: x[None], out)

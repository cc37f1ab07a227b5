"""One update of a text stage, as a pure function of (state, batch, now). Reads no config."""

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import optax

from dinojax.augment.single import CropSpec, make_crops
from dinojax.ops import rng
from dinojax.sharding import mesh
from dinojax.sharding.batch import merge_batch, split_batch
from dinojax.train import health
from dinojax.train.optim import part_norms
from dinojax.train.state import State
from dinojax.train.text_objective import PairFeatures, TextInputs, TextObjective


@flax.struct.dataclass
class TextViews:
    """What the networks see of the images, one crop of each."""

    global_BGHWC: jax.Array
    local_BLHWC: None = None
    teacher_BGHWC: None = None


@dataclasses.dataclass(frozen=True)
class TextStep:
    """`step(state, batch, now) -> (state, scalars)`, called and compiled as `Step` is.

    Its operations carry the names of phases as those of `Step` do.

    batch: {"images" uint8 [B, S, S, C], "sizes" int32 [B, 2], "tokens" int32 [B, N]}. The loss is
    one of the whole batch, so with micro-batches the features of all are made first, the gradient
    of the loss goes to them, and each micro-batch is computed again to take it further: exact, for
    one more forward pass (arXiv:2101.06983).
    """

    objective: TextObjective
    optimizer: optax.GradientTransformationExtraArgs
    crop_spec: CropSpec
    accumulate: int = 1

    def __call__(self, state: State, batch: dict, now: dict) -> tuple[State, dict]:
        return self.update(state, self.inputs(state, self.views(state, batch), batch), now)

    @jax.named_scope("crops")
    def views(self, state: State, batch: dict) -> TextViews:
        """Crops of the step that the state is about to take."""
        per_group = functools.partial(functools.partial, mesh.per_group)
        key = jax.random.fold_in(state.key, state.step)
        crops = make_crops(
            key, batch["images"], batch["sizes"], self.crop_spec, per_group=per_group
        )
        return TextViews(crops[:, None])

    def inputs(self, state: State, views: TextViews, batch: dict) -> TextInputs:
        """Views and captions with the keys of their groups."""
        key = jax.random.fold_in(state.key, state.step)
        images_BHWC = views.global_BGHWC[:, 0]
        num_groups = len(images_BHWC) // self.objective.group_size
        return TextInputs(images_BHWC, batch["tokens"], rng.group_keys(key, "drop", num_groups))

    def update(self, state: State, inputs: TextInputs, now: dict) -> tuple[State, dict]:
        """Student gradients -> optimizer. Frozen parts stay; a bad step changes nothing."""
        with jax.named_scope("crops"):
            parts = split_batch(inputs, self.accumulate)
        grads, terms = self.gradients(state.student, state.ema, parts)
        state, told = self.applied(state, grads, terms["total"], now)
        return state, {**terms, **told}

    @jax.named_scope("optimizer")
    def applied(self, state: State, grads: dict, total, now: dict) -> tuple[State, dict]:
        """(The next state, scalars of the update)."""
        norms = {f"grad_norm/{part}": norm for part, norm in part_norms(grads).items()}
        ok = health.all_finite({"total": total, **norms})
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.student, now=now)
        student = optax.apply_updates(state.student, updates)
        most = jnp.log(jnp.asarray(self.objective.max_scale, student["logit_scale"].dtype))
        student = {**student, "logit_scale": jnp.clip(student["logit_scale"], 0.0, most)}
        bad_steps = jnp.where(ok, 0, state.bad_steps + 1)
        new = dict(student=student, opt_state=opt_state)
        kept = health.keep_if(ok, new, {name: getattr(state, name) for name in new})
        scalars = _some(state.student, self.objective.scalars)
        scalars["logit_scale"] = jnp.exp(scalars["logit_scale"])
        state = dataclasses.replace(state, **kept, step=state.step + 1, bad_steps=bad_steps)
        return state, {**norms, **scalars, "bad_steps": bad_steps}

    @jax.named_scope("student")
    def gradients(self, student: dict, frozen: dict, parts: TextInputs) -> tuple[dict, dict]:
        """Gradient and terms of the loss over all micro-batches, one in memory at a time."""
        objective = self.objective
        if self.accumulate == 1:
            only = jax.tree.map(lambda x: x[0], parts)

            def whole(student):
                features = objective.features(student, frozen, only)
                return objective.loss(_some(student, objective.scalars), features)

            return jax.grad(whole, has_aux=True)(student)

        def features(student, part) -> PairFeatures:
            return objective.features(student, frozen, part)

        rows = merge_batch(jax.lax.map(functools.partial(features, student), parts))
        loss = jax.grad(objective.loss, argnums=(0, 1), has_aux=True)
        (own, pulls), terms = loss(_some(student, objective.scalars), rows)

        def add(total, pair):
            part, pull = pair
            _, back = jax.vjp(lambda params: features(params, part), student)
            return jax.tree.map(jnp.add, total, back(pull)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, student)
        grads, _ = jax.lax.scan(add, zeros, (parts, split_batch(pulls, self.accumulate)))
        return {**grads, **{name: grads[name] + grad for name, grad in own.items()}}, terms


def _some(parts: dict, names: tuple[str, ...]) -> dict:
    return {name: parts[name] for name in names}

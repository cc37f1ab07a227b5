"""A step of a text stage is the same on any devices and in any micro-batches."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dinojax.models.text_networks import TextNetworks
from dinojax.models.text_tower import TextHead, TextSpec, TextTower
from dinojax.models.vision_head import VisionHead, VisionHeadSpec
from dinojax.models.vit import Vit, VitSpec
from dinojax.ops import rng
from dinojax.sharding import mesh
from dinojax.sharding.batch import split_batch
from dinojax.train import optim
from dinojax.train import state as states
from dinojax.train.text_objective import TextInputs, TextObjective
from dinojax.train.text_step import TextStep

B, GROUP, CONTEXT, IDS = 16, 2, 6, 32
# strategy, devices, micro-batches
PLACES = [
    *(("dp", 2, 1), ("dp", 4, 2), ("fsdp", 4, 1), ("hsdp", 8, 1), ("fsdp_tp", 8, 1)),
    *(("dp", 1, 4), ("fsdp", 2, 2)),
]
BACKBONE = VitSpec(width=16, depth=2, num_heads=2, patch_size=4, num_registers=1)
HEAD = VisionHeadSpec(width=16, depth=1, num_heads=2, drop_path=0.5)
TEXT = TextSpec(IDS, CONTEXT, width=16, depth=1, num_heads=2, outputs=32)


# The same with the sigmoid loss.
SIGMOID = [("fsdp", 4, 1), ("dp", 2, 2)]


def make(*, accumulate=1, frozen=("backbone",), gram=0.5, max_scale=100.0, bias=None):
    sides = VisionHead(HEAD), TextTower(TEXT), TextHead(TEXT)
    networks = TextNetworks(Vit(BACKBONE), *sides)
    sizes = {"group_size": GROUP, "bias": bias}
    objective = TextObjective(networks, frozen, 10.0, max_scale, gram, **sizes)
    section = ConfigDict({"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "clip": None})
    student = jax.eval_shape(lambda: states.nn.meta.unbox(objective.init(jax.random.key(0))[0]))
    optimizer = optim.build(section, multipliers=optim.text_multipliers(student))
    return TextStep(objective, optimizer, None, accumulate)  # type: ignore[arg-type]


def inputs():
    """To be made outside of `mesh.use`, whose devices arrays would belong to."""
    random = np.random.default_rng(0)
    return TextInputs(
        jnp.asarray(random.normal(size=(B, 8, 8, 3)), jnp.float32),
        jnp.asarray(random.integers(0, IDS, (B, CONTEXT)), jnp.int32),
        rng.group_keys(jax.random.key(1), "drop", B // GROUP),
    )


NOW = {"lr": jnp.float32(0.1), "last_layer_lr": jnp.float32(0.1), "weight_decay": jnp.float32(0.1)}


def gradients(strategy, devices, accumulate, bias=None):
    step, given = make(accumulate=accumulate, bias=bias), inputs()
    layout = mesh.make(strategy, devices)

    def run(state, inputs):
        return step.gradients(state.student, state.ema, split_batch(inputs, accumulate))

    with mesh.use(layout) if devices > 1 else contextlib.nullcontext():
        state = states.create(step.objective, step.optimizer, layout, 0)
        if devices > 1:
            given = jax.device_put(given, layout.sharding("image"))
        return jax.device_get(jax.jit(run)(state, given))


@functools.cache
def reference(bias):
    return gradients("dp", 1, 1, bias)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "bias"),
    [*((place, None) for place in PLACES), *((place, -2.0) for place in SIGMOID)],
    ids=str,
)
def test_loss_and_gradients_are_those_of_one_device(place, bias):
    grads, terms = gradients(*place, bias)
    expected, known = reference(bias)
    for name, value in known.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-5), name
    flat = jax.tree_util.tree_leaves_with_path(grads)
    for (path, ours), theirs in zip(flat, jax.tree.leaves(expected), strict=True):
        size = max(float(np.abs(theirs).max()), 1e-3)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * size, err_msg=str(path))


def test_everything_but_the_frozen_parts_learns():
    step = make()
    state = states.create(step.objective, step.optimizer, mesh.make("dp", 1), 0)
    after, scalars = jax.jit(step.update)(state, inputs(), NOW)
    jax.tree.map(np.testing.assert_array_equal, after.ema, state.ema)
    assert set(after.student) == {"vision_head", "text_tower", "text_head", "logit_scale"}
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.student, state.student)
    assert all(jax.tree.leaves(moved)), moved
    assert float(scalars["total"]) > 0 and int(after.step) == 1
    assert {f"grad_norm/{part}" for part in after.student} <= set(scalars)


def test_the_bias_of_the_sigmoid_loss_learns_without_weight_decay():
    step = make(bias=-2.0, gram=0.0)
    state = states.create(step.objective, step.optimizer, mesh.make("dp", 1), 0)
    assert float(state.student["logit_bias"]) == -2.0
    assert optim.text_multipliers(state.student).weight_decay["logit_bias"] == 0.0
    after, scalars = jax.jit(step.update)(state, inputs(), NOW)
    assert float(scalars["sigmoid"]) == float(scalars["total"]) > 0
    assert "contrastive" not in scalars and float(scalars["logit_bias"]) == -2.0
    assert float(after.student["logit_bias"]) != -2.0


def test_a_frozen_tower_is_no_part_of_the_student_and_stays():
    step = make(frozen=("backbone", "text_tower"))
    state = states.create(step.objective, step.optimizer, mesh.make("dp", 1), 0)
    assert set(state.student) == {"vision_head", "text_head", "logit_scale"}
    after, _ = jax.jit(step.update)(state, inputs(), NOW)
    jax.tree.map(np.testing.assert_array_equal, after.ema, state.ema)


def test_the_scale_of_logits_stays_within_its_bounds():
    step = make(max_scale=10.5)
    state = states.create(step.objective, step.optimizer, mesh.make("dp", 1), 0)
    update = jax.jit(step.update)
    for _ in range(3):
        state, _ = update(state, inputs(), {**NOW, "lr": jnp.float32(1.0)})
        assert 0.0 <= float(state.student["logit_scale"]) <= np.log(10.5) + 1e-6


def test_a_step_that_is_not_finite_changes_nothing():
    step = make()
    state = states.create(step.objective, step.optimizer, mesh.make("dp", 1), 0)
    given = inputs()
    bad = given.replace(images_BHWC=given.images_BHWC.at[0, 0, 0, 0].set(jnp.nan))
    after, _ = jax.jit(step.update)(state, bad, NOW)
    jax.tree.map(np.testing.assert_array_equal, after.student, state.student)
    assert int(after.bad_steps) == 1 and int(after.step) == 1

"""The step: the same on any number of devices, and each of its parts does what its name says.

Comparing devices cannot see a mistake that all of them share, so the second half says what one
step must do to a state of known numbers.
"""

import dataclasses
import re

import jax
import numpy as np
import pytest

from benchmarks import roofline
from dinojax.sharding import mesh
from dinojax.train import program
from dinojax.train.step import Step
from tests.support import small

VARIANTS = {
    "plain": (),
    # A frozen gram network on larger crops, softmax centering with its running centers.
    "gram": (
        "gram.enabled=True",
        "gram.anchor=file",
        "crops.gram_size=40",
        "losses.centering=softmax",
    ),
}
# (devices, strategy, micro-batches), besides (8, "fsdp", 2) among the fast tests.
PLACES = [
    *((1, "dp", 4), (2, "fsdp", 4), (4, "dp", 2), (8, "dp", 1)),
    *((4, "hsdp", 1), (8, "hsdp", 2), (8, "fsdp_tp", 1)),
]


def build(devices: int, strategy: str = "dp", accumulate: int = 1, *overrides: str):
    places = (f"mesh.devices={devices}", f"mesh.strategy={strategy}", f"accumulate={accumulate}")
    return small.compiled(small.config(*places, *overrides))


@pytest.fixture(scope="module")
def one():
    """The step on one device."""
    return build(1)


@pytest.fixture(scope="module")
def done(one):
    """(state before, state after, what was recorded) of one step on one device."""
    return small.numbers(one.program), *one()


@pytest.fixture(scope="module")
def eight():
    return build(8, "fsdp", 2)


@pytest.mark.slow
def test_eight_devices_and_two_micro_batches_take_the_same_step(eight, done):
    state, seen = eight()
    small.assert_close(seen, done[2])
    small.assert_close(state, done[1])


def parameter_sides(student) -> set[tuple[int, ...]]:
    """Sides of parameters, those of stacked blocks without their depth and as they travel."""
    blocks = jax.tree.leaves(student["backbone"]["blocks"])
    found = {small.sides(leaf.shape) for leaf in jax.tree.leaves(student)}
    found |= {small.sides(leaf.shape[1:]) for leaf in blocks}
    return found | {small.travelling(leaf, whole=True) for leaf in blocks}


def blocks_of_prototypes(config, layout) -> set[tuple[int, ...]]:
    """Sides of the equal parts of prototypes that the loss gathers one after another."""
    found = set()
    for head in (config.dino_head, config.ibot_head):
        stored = head.prototypes // layout.mesh.size
        parts = (n for n in range(1, stored + 1) if stored % n == 0)
        found |= {small.sides((head.bottleneck, head.prototypes // n)) for n in parts}
    return found


@pytest.mark.slow
def test_with_sharded_weights_only_weights_travel_whole(eight):
    """Gathered are parameters; summed up, gradients, Sinkhorn's sums and scalars."""
    student = eight.program.abstract_state().student
    params = parameter_sides(student)
    stored = {small.sides(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(student)}
    blocks = jax.tree.leaves(student["backbone"]["blocks"])
    stored |= {small.travelling(x, whole=False) for x in blocks}
    # Of prototypes; cls and registers; pairs of crops; the covariance of cls; scalars.
    sums = {(64,), (3, 16), (2, 2), (16, 16), ()}
    known = {"all-gather": params, "reduce-scatter": stored, "all-reduce": params | sums}
    found = small.collectives(eight.step)
    for name, results in found:
        assert set(results) <= known[name], name
    assert any(name == "all-gather" for name, _ in found)


@pytest.fixture(scope="module")
def large():
    """The step on one device with a batch that divides by all PLACES."""
    return build(1, "dp", 1, "batch_size=64")()


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "strategy", "accumulate"), PLACES)
def test_no_place_changes_the_step(devices, strategy, accumulate, large):
    step = build(devices, strategy, accumulate, "batch_size=64")
    state, seen = step()
    small.assert_close(seen, large[1])
    small.assert_close(state, large[0])
    if strategy == "dp":
        for name, results in small.collectives(step.step):
            assert name == "all-reduce", (name, results)


@pytest.mark.slow
def test_gram_crops_and_centers_do_not_depend_on_devices_either():
    state, seen = build(1, "dp", 1, *VARIANTS["gram"])()
    there = build(4, "fsdp", 2, *VARIANTS["gram"])
    before = small.numbers(there.program)
    moved, recorded = there()
    small.assert_close(recorded, seen)
    small.assert_close(moved, state)
    assert recorded["scalars"]["gram"] > 0
    assert small.same(moved.gram, before.gram), "the gram network is frozen"
    assert not small.same(moved.centers, before.centers)


# -- what one step does --------------------------------------------------------------------------


def altered(step, **trees):
    """The state of `small.numbers` with every float of the given trees changed."""
    state = small.numbers(step.program)
    change = {name: jax.tree.map(lambda x: 1.1 * x, getattr(state, name)) for name in trees}
    return dataclasses.replace(state, **change)


def test_targets_come_from_the_ema_and_gradients_from_the_student(one, done):
    _, seen = one(altered(one, ema=True))
    for name in ("dino", "ibot"):
        assert not small.same(seen["targets"][name], done[2]["targets"][name])
    _, seen = one(altered(one, student=True))
    assert small.same(seen["targets"], done[2]["targets"])
    assert not small.same(seen["grads"], done[2]["grads"])


def test_every_parameter_of_the_student_has_a_gradient(done):
    zero = [
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(done[2]["grads"])
        if not np.max(np.abs(grad)) > 1e-9
    ]
    assert not zero


def test_the_ema_moves_a_tenth_of_the_way_to_the_new_student(one, done):
    state, _ = one(now={"momentum": np.float32(0.9)})
    want = jax.tree.map(lambda ema, student: 0.9 * ema + 0.1 * student, done[0].ema, state.student)
    small.assert_close(state.ema, want, 1e-6)


def test_a_learning_rate_of_zero_moves_nothing_but_moments_and_ema(one, done):
    zero = {"lr": np.float32(0), "last_layer_lr": np.float32(0)}
    assert {name: one.program.now(0)[name] for name in zero} == zero, "step 0 of the recipe"
    state, _ = one(now=zero)
    assert small.same(state.student, done[0].student)
    assert not small.same(state.opt_state.mu, done[0].opt_state.mu)
    assert not small.same(state.opt_state.nu, done[0].opt_state.nu)


def test_a_frozen_last_layer_keeps_its_prototypes_and_nothing_else(one, done):
    state, _ = one(now={"last_layer_lr": np.float32(0)})
    for path, after in jax.tree_util.tree_leaves_with_path(state.student):
        names = [key.key for key in path]
        before, moment, moment_before = done[0].student, state.opt_state.mu, done[0].opt_state.mu
        for name in names:
            before, moment, moment_before = before[name], moment[name], moment_before[name]
        assert small.same(before, after) == ("prototypes" in names), names
        assert not small.same(moment, moment_before), names


def test_a_step_counts_and_keeps_key_and_centers(one, done):
    before, after, _ = done
    assert after.step == before.step + 1 and after.opt_state.count == before.opt_state.count + 1
    assert small.same(jax.random.key_data(after.key), jax.random.key_data(before.key))
    assert after.gram is None and after.centers == {}


def test_the_number_of_the_step_and_the_seed_change_the_views(one, done):
    state = small.numbers(one.program)
    _, seen = one(dataclasses.replace(state, step=state.step + 1))
    assert not small.same(seen["targets"], done[2]["targets"])
    _, seen = one(dataclasses.replace(small.numbers(one.program), key=jax.random.key(1)))
    assert not small.same(seen["targets"], done[2]["targets"])


def test_gradients_are_reported_before_clipping(one, done):
    for part, grads in done[2]["grads"].items():
        squares = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(grads))
        got = done[2]["scalars"][f"grad_norm/{part}"]
        np.testing.assert_allclose(got, squares**0.5, rtol=1e-5)


def pointers(state) -> list[int]:
    """The address of every array on every device."""
    leaves = [x for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, KEY)]
    return [s.data.unsafe_buffer_pointer() for x in leaves for s in x.addressable_shards]


KEY = jax.dtypes.prng_key


@pytest.mark.slow
def test_a_step_donates_its_state_and_shares_no_buffer_between_trees(eight):
    state = small.numbers(eight.program)
    after, _ = eight(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.student))
    found = pointers(after)
    assert len(set(found)) == len(found)


def test_operations_name_their_phase(one):
    """So that a profile can be split by them, and `benchmarks.roofline` has rows."""
    # Not of the compiled program: a cache of these finds one by what it computes, not by names.
    names = re.findall(r'loc\("(jit[^"]*/[^"]*)"', one.lowered.as_text(debug_info=True))
    found = [roofline.phase(name) for name in names]
    assert set(found) - {"rest"} == set(roofline.PHASES)
    outside = {name for name, phase in zip(names, found, strict=True) if phase == "rest"}
    assert found.count("rest") < 0.02 * len(found), outside


def test_a_step_reads_no_config():
    names = {field.name for field in dataclasses.fields(Step)}
    assert names == {"objective", "optimizer", "view_spec", "accumulate"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vitl16_in1k", "vit7b16"])
def test_a_published_recipe_compiles_with_an_eighth_of_its_state_on_each_device(name):
    """At full size, from shapes alone; 16 images per device."""
    loaded = small.configs.load(name, ["batch_size=128", "group_size=16", "model.remat=full"])
    layout = mesh.make("fsdp", 8)
    built = program.build(loaded, layout)
    with mesh.use(layout):
        state = built.abstract_state()
        step = built.lower().compile(compiler_options=small.FAST)
    num_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(state))
    boxes = np.prod(built.batch_shape)
    arguments = step.memory_analysis().argument_size_in_bytes
    assert num_bytes / 8 < arguments < 1.01 * (num_bytes + boxes) / 8
    # Sizes decide what the compiler moves: small heads never showed what these did.
    for name, results in small.collectives(step):
        assert name in ("all-gather", "all-reduce", "reduce-scatter"), (name, results)
        if name == "all-gather":
            known = parameter_sides(state.student) | blocks_of_prototypes(loaded, layout)
            assert set(results) <= known, results

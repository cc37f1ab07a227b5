"""Low-rank adapters: what trains, what stays to the last bit, and kernels that are merged."""

import contextlib
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinojax import config
from dinojax.checkpoint.manager import Checkpoints
from dinojax.sharding import mesh
from dinojax.train import lora, optim, program
from dinojax.train.lora import AdapterSpec, kernels_of, merge, num_trained
from dinojax.train.step import _towards
from tests.support import small

SPEC = AdapterSpec(rank=2, alpha=4.0, targets=("qkv", "proj", "ffn"), norms=False)
ADAM = types.SimpleNamespace(beta1=0.9, beta2=0.99, eps=1e-8, clip=None)
NOW = {"lr": 1e-2, "last_layer_lr": 1e-2, "weight_decay": 0.1}
KERNELS = {f"blocks-{name}-kernel" for name in ("attn-qkv", "attn-proj", "mlp-fc1", "mlp-fc2")}


DEPTH, WIDTH, HIDDEN = 2, 16, 24
LEAF = ("scale", "bias")


def params():
    """A backbone with the names and shapes of a ViT's, and a head."""
    rng = np.random.default_rng(0)

    def linear(*shape, num_in=1):
        kernel, bias = rng.normal(size=shape), rng.normal(size=(DEPTH, *shape[1 + num_in :]))
        return {"kernel": np.float32(kernel), "bias": np.float32(bias)}

    def norm(*shape):
        return {name: np.float32(rng.normal(size=(*shape, WIDTH))) for name in LEAF}

    attention = {
        "qkv": linear(DEPTH, WIDTH, 3, 2, WIDTH // 2),
        "proj": linear(DEPTH, 2, WIDTH // 2, WIDTH, num_in=2),
    }
    mlp = {"fc1": linear(DEPTH, WIDTH, HIDDEN), "fc2": linear(DEPTH, HIDDEN, WIDTH)}
    blocks = {"attn": attention, "mlp": mlp, "norm1": norm(DEPTH), "norm2": norm(DEPTH)}
    backbone = {"blocks": blocks, "norm": norm(), "cls_token": np.float32(rng.normal(size=WIDTH))}
    head = {"prototypes": {"kernel": np.float32(rng.normal(size=(WIDTH, 5)))}}
    return {"backbone": backbone, "dino_head": head}


def build(spec=SPEC, layer_decay=0.9):
    factors = optim.multipliers(params(), depth=DEPTH, layer_decay=layer_decay, patch_embed_lr=0.2)
    make = lambda factors: optim.build(ADAM, multipliers=factors)  # noqa: E731
    return lora.wrap(spec, make, multipliers=factors, seed=0)


def gradients(step, tree):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda leaf: np.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


def train(optimizer, tree, num_steps=3):
    """(parameters after some updates, state of the optimizer)."""
    state = optimizer.init(params())
    for step in range(num_steps):
        updates, state = optimizer.update(gradients(step, tree), state, tree, now=NOW)
        tree = jax.tree.map(np.add, tree, updates)
    return tree, state


def jitted(optimizer):
    """The same, compiled once, and always with the same first state."""
    start = jax.jit(optimizer.init)(params())
    return optimizer._replace(init=lambda _: start, update=jax.jit(optimizer.update))


@pytest.fixture(scope="module")
def optimizer():
    return jitted(build())


@pytest.fixture(scope="module")
def trained(optimizer):
    """(parameters before, after three updates, state of the optimizer)."""
    return params(), *train(optimizer, params())


def test_before_the_first_update_the_network_is_that_of_the_weights_it_starts_from(optimizer):
    state = optimizer.init(params())
    kernels = kernels_of(params()["backbone"], SPEC)
    assert kernels.keys() == KERNELS
    for name, kernel in merge(state.base, state.adapters, spec=SPEC).items():
        np.testing.assert_array_equal(kernel, kernels[name])
    assert all(np.std(pair["a"]) > 0.05 for pair in state.adapters.values())


def test_kernels_are_merged_and_everything_else_of_the_backbone_stays_to_the_last_bit(trained):
    before, after, state = trained
    merged = merge(state.base, state.adapters, spec=SPEC)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after["backbone"]):
        name = lora._name(path)
        old = functools.reduce(lambda tree, key: tree[key], name.split("-"), before["backbone"])
        if name in KERNELS:
            np.testing.assert_allclose(leaf, merged[name], rtol=1e-6, atol=1e-6)
            assert np.abs(leaf - old).max() > 1e-3
        else:
            np.testing.assert_array_equal(leaf, old)
    assert not np.array_equal(*[t["dino_head"]["prototypes"]["kernel"] for t in (before, after)])


def test_what_is_added_has_the_rank_of_the_adapters(trained):
    before, after, _ = trained
    change = after["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    change = change - before["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    for block in change:
        singular = np.linalg.svd(block, compute_uv=False)
        assert singular[1] > 1e-3 and singular[2] < 1e-5 * singular[0]


def test_a_layer_with_merged_kernels_equals_one_that_adds_its_adapters(trained):
    """y = x base + alpha / rank (x a) b, of a block's MLP and of its attention's output."""
    _, after, state = trained
    block, rng = after["backbone"]["blocks"], np.random.default_rng(0)
    for name, num_in in {"mlp-fc1": 1, "attn-proj": 2}.items():
        part, layer = name.split("-")
        kernel = np.float64(block[part][layer]["kernel"][1])
        base = np.float64(state.base[f"blocks-{name}-kernel"][1])
        a, b = (np.float64(state.adapters[f"blocks-{name}-kernel"][key][1]) for key in "ab")
        x = rng.normal(size=(7, *base.shape[:num_in]))
        added = 2.0 * np.tensordot(np.tensordot(x, a, num_in), b, 1)
        want = np.tensordot(x, base, num_in) + added
        merged = np.tensordot(x, kernel, num_in)
        np.testing.assert_allclose(merged, want, rtol=0, atol=1e-6 * np.abs(want).max())
        assert np.abs(added).max() > 0.01


def test_adapters_have_the_gradient_of_what_they_add_to_the_loss(optimizer):
    """With plain gradient descent, against jax.grad through the merged kernels."""

    def descend(_):
        def update(grads, state, params=None, *, now, **_):
            return jax.tree.map(lambda g: -0.1 * g, grads), state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    factors = optim.multipliers(params(), depth=DEPTH, layer_decay=1.0, patch_embed_lr=1.0)
    plain = lora.wrap(SPEC, descend, multipliers=factors, seed=0)
    tree, state = params(), optimizer.init(params())
    noise = gradients(5, state.adapters)  # b is not 0, or a would have no gradient
    state = state._replace(adapters=jax.tree.map(jnp.add, state.adapters, noise), inner=())
    merged = merge(state.base, state.adapters, spec=SPEC)

    @jax.jit
    @jax.grad
    def slopes_of(pairs):
        return sum(jnp.sum(jnp.sin(k)) for k in merge(state.base, pairs, spec=SPEC).values())

    want = slopes_of(state.adapters)
    slopes = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.cos(merged.get(lora._name(path), leaf)), tree["backbone"]
    )
    update = jax.jit(plain.update)
    _, after = update({**tree, "backbone": slopes}, state, tree, now=NOW)
    got = jax.tree.map(lambda new, old: (old - new) / 0.1, after.adapters, state.adapters)
    small.assert_close(got, want, 1e-4)


def test_only_what_trains_has_moments(trained):
    before, _, state = trained
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    inputs_and_outputs = 4 * WIDTH + 2 * WIDTH + 2 * (WIDTH + HIDDEN)
    want = DEPTH * SPEC.rank * inputs_and_outputs + 5 * WIDTH
    assert num_trained(before, SPEC) == (want, count(before))
    assert count(state.inner.mu) == count(state.inner.nu) == want
    assert jax.tree.structure(before) == jax.tree.structure(trained[1])  # what export reads


def test_targets_and_norms_are_chosen():
    spec = AdapterSpec(rank=1, alpha=1.0, targets=("qkv",), norms=True)
    before = params()
    after, state = train(jitted(build(spec)), before)
    assert set(state.adapters) == {"blocks-attn-qkv-kernel"}
    moved = {
        lora._name(path)
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(before["backbone"]),
            jax.tree.leaves(after["backbone"]),
            strict=True,
        )
        if not np.array_equal(old, new)
    }
    norms = {f"{norm}-{leaf}" for norm in ("norm", "blocks-norm1", "blocks-norm2") for leaf in LEAF}
    assert moved == {"blocks-attn-qkv-kernel"} | norms


def test_layer_decay_holds_for_adapters():
    """Adam's first update is the learning rate, and b starts at 0, where nothing decays."""
    _, state = train(jitted(build(layer_decay=0.5)), params(), 1)
    b = np.abs(state.adapters["blocks-attn-proj-kernel"]["b"])
    np.testing.assert_allclose(b[0], 0.25 * NOW["lr"], rtol=1e-4)
    np.testing.assert_allclose(b[1], 0.5 * NOW["lr"], rtol=1e-4)


def test_weights_loaded_into_a_new_state_are_the_base(optimizer):
    loaded = jax.tree.map(lambda leaf: 2.0 * leaf, params())
    _, state = train(optimizer, loaded, 2)  # whose state was made for other weights
    want = kernels_of(loaded["backbone"], SPEC)
    for name, kernel in want.items():
        np.testing.assert_array_equal(state.base[name], kernel)


def test_the_ema_of_a_weight_that_stays_is_that_weight():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=10_000), jnp.float32)
    ema = weights
    for _ in range(5):
        ema = _towards(jnp.float32(1 - 0.994), ema, weights)
    np.testing.assert_array_equal(ema, weights)
    np.testing.assert_allclose(_towards(0.25, jnp.ones(3), jnp.zeros(3)), 0.75)


def test_a_backbone_without_blocks_is_refused():
    convnext = {"backbone": {"stages_0": {"pwconv1": {"kernel": np.ones((4, 4))}}}}
    factors = optim.multipliers(convnext, depth=0, layer_decay=1.0, patch_embed_lr=1.0)
    with pytest.raises(ValueError, match=r"adapter.rank=2, but no kernel .* set adapter.rank=0"):
        lora.wrap(SPEC, lambda factors: None, multipliers=factors, seed=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("adapter.targets=('qkv','mlp')", "use one or more of qkv, proj, ffn, each once"),
        ("adapter.targets=()", "use one or more of"),
        ("adapter.targets=(1,)", "expected texts"),
        ("adapter.rank=-1", "adapter.rank=-1 is out of range"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(config.ConfigError) as caught:
        config.load("tiny", [setting])
    assert message in str(caught.value)


OF_THE_STEP = AdapterSpec(rank=2, alpha=16.0, targets=SPEC.targets, norms=False)
SETTINGS = ("adapter.rank=2", "schedules.lr.start=1e-3", "model.layer_scale=1.0")


def updated(*places):
    """(changes, state of the optimizer) of one update, from numbers that are anywhere the same."""
    loaded = small.config(*SETTINGS, *places)
    built = program.build(loaded, mesh.make(loaded.mesh.strategy, loaded.mesh.devices))
    with mesh.use(built.layout):
        state, grads = small.numbers(built), small.numbers(built, seed=1).student
        update = jax.jit(built.step.optimizer.update, compiler_options=small.FAST)
        return update(grads, state.opt_state, state.student, now=built.now(small.STEP))


@pytest.mark.slow
def test_eight_devices_with_sharded_weights_make_the_same_update():
    one, eight = updated("mesh.devices=1"), updated("mesh.devices=8", "mesh.strategy=fsdp")
    small.assert_close(eight, one)
    kernel = eight[1].adapters["blocks-mlp-fc1-kernel"]["a"]
    assert not kernel.sharding.is_fully_replicated


@pytest.mark.slow
def test_the_step_moves_kernels_and_heads_alone_and_checkpoints_hold_adapters(tmp_path):
    compiled = small.compiled(small.config(*SETTINGS, "mesh.devices=1"))
    with mesh.use(compiled.program.layout):
        before = jax.device_get(compiled.program.new_state().student)
        state, _ = compiled(compiled.program.new_state())
    merged = merge(state.opt_state.base, state.opt_state.adapters, spec=OF_THE_STEP)
    small.assert_close(kernels_of(state.student["backbone"], OF_THE_STEP), merged, 1e-6)
    moved = {
        lora._name(path)
        for (path, old), student, ema in zip(
            jax.tree_util.tree_leaves_with_path(before["backbone"]),
            jax.tree.leaves(state.student["backbone"]),
            jax.tree.leaves(state.ema["backbone"]),
            strict=True,
        )
        if not (np.array_equal(old, student) and np.array_equal(old, ema))
    }
    assert moved == KERNELS
    assert not small.same(state.student["dino_head"], before["dino_head"])
    with contextlib.closing(Checkpoints(tmp_path / "run", keep_last=1, keep_every=None)) as saved:
        saved.save(state, step=1, meta={})
        saved.wait()
        again = saved.restore(compiled.program.abstract_state(), 1)
    small.assert_close(again, state, 0.0)

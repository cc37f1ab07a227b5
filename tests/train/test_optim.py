"""Factors per parameter, and AdamW per part."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinojax.train import optim

NOW = {"lr": 1e-2, "last_layer_lr": 1e-2, "weight_decay": 0.1}
ADAM = types.SimpleNamespace(beta1=0.9, beta2=0.99, eps=1e-8, clip=None)


# Factors


def params(depth=3):
    block = {
        "norm1": {"scale": jnp.ones((depth, 4)), "bias": jnp.ones((depth, 4))},
        "attn": {
            "qkv": {"kernel": jnp.ones((depth, 4, 3, 2, 2)), "bias": jnp.ones((depth, 3, 2, 2))}
        },
        "scale1": jnp.ones((depth, 4)),
    }
    backbone = {
        "patch_embed": {"kernel": jnp.ones((2, 2, 3, 4)), "bias": jnp.ones(4)},
        "cls_token": jnp.ones(4),
        "mask_token": jnp.ones(4),
        "registers": jnp.ones((2, 4)),
        "blocks": block,
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "local_cls_norm": {"scale": jnp.ones(4)},
    }
    head = {
        "layer0": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
        "prototypes": {"kernel": jnp.ones((4, 5)), "scale": jnp.ones(5)},
    }
    return {"backbone": backbone, "dino_head": head, "ibot_head": head}


def factors(tree, depth=3):
    return optim.multipliers(tree, depth=depth, layer_decay=0.9, patch_embed_lr=0.2)


def test_learning_rates_decay_by_block():
    lr = factors(params()).lr
    backbone = lr["backbone"]
    for token in ("cls_token", "mask_token", "registers"):
        assert backbone[token] == pytest.approx(0.6561)
    assert backbone["patch_embed"]["kernel"] == pytest.approx(0.13122)
    assert backbone["patch_embed"]["bias"] == pytest.approx(0.13122)
    for leaf, array in zip(
        jax.tree.leaves(backbone["blocks"]),
        jax.tree.leaves(params()["backbone"]["blocks"]),
        strict=True,
    ):
        assert leaf.shape == (3,) + (1,) * (array.ndim - 1)
        np.testing.assert_allclose(leaf.ravel(), [0.729, 0.81, 0.9])
    assert backbone["norm"]["scale"] == backbone["local_cls_norm"]["scale"] == 1.0
    assert set(jax.tree.leaves([lr["dino_head"], lr["ibot_head"]])) == {1.0}


def test_tokens_and_matrices_are_decayed_biases_norms_and_layer_scale_are_not():
    decay = factors(params()).weight_decay
    flat = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(decay)}
    undecayed = {name for name, value in flat.items() if value == 0.0}
    assert set(flat.values()) == {0.0, 1.0}
    for name in flat:
        expected = "bias" in name or "norm" in name or "scale1" in name
        assert (name in undecayed) == expected, name
    assert decay["dino_head"]["prototypes"]["scale"] == 1.0


def test_only_prototypes_follow_the_last_layer_rate():
    is_last = factors(params()).is_last
    for head in ("dino_head", "ibot_head"):
        assert is_last[head]["prototypes"] == {"kernel": True, "scale": True}
        assert is_last[head]["layer0"] == {"kernel": False, "bias": False}
    assert not any(jax.tree.leaves(is_last["backbone"]))


def test_abstract_parameters_do():
    abstract = jax.eval_shape(params)
    same = jax.tree.map(lambda last, leaf: True, factors(abstract).is_last, abstract)
    assert len(jax.tree.leaves(same)) == len(jax.tree.leaves(abstract))


def test_unknown_parameters_and_another_depth_are_errors():
    with pytest.raises(
        ValueError, match="No learning-rate factor is known for backbone.stem.kernel"
    ):
        factors({"backbone": {"stem": {"kernel": jnp.ones(2)}}})
    with pytest.raises(ValueError, match="3 blocks, but depth=4"):
        factors(params(), depth=4)


def test_learned_positions_are_tokens_to_the_factors():
    tree = {"backbone": {"positions": jnp.ones((5, 4))}}
    assert factors(tree).lr["backbone"]["positions"] == pytest.approx(0.6561)
    assert factors(tree).weight_decay["backbone"]["positions"] == 1.0


def test_a_convnext_learns_at_one_rate_and_decays_the_norms_beside_its_downsampling():
    norm = {"scale": jnp.ones(4), "bias": jnp.ones(4)}
    conv = {"kernel": jnp.ones((2, 2, 4, 4)), "bias": jnp.ones(4)}
    stage = {"norm": norm, "dwconv": conv, "scale1": jnp.ones((3, 4))}
    backbone = {"downsamples_1": {"norm": norm, "conv": conv}, "stages_1": stage, "norm": norm}
    found = factors({"backbone": backbone})
    assert set(jax.tree.leaves(found.lr)) == {1.0}
    decay = found.weight_decay["backbone"]
    assert decay["downsamples_1"] == {
        "norm": {"scale": 1.0, "bias": 0.0},
        "conv": {"kernel": 1.0, "bias": 0.0},
    }
    assert decay["stages_1"] == {
        "norm": {"scale": 0.0, "bias": 0.0},
        "dwconv": {"kernel": 1.0, "bias": 0.0},
        "scale1": 0.0,
    }
    assert decay["norm"] == {"scale": 0.0, "bias": 0.0}


# AdamW


def small(seed):
    rng = np.random.default_rng(seed)
    shapes = {
        "backbone": {"cls_token": (4,), "norm": {"bias": (3,)}},
        "dino_head": {"prototypes": {"kernel": (2, 3)}},
    }
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def ones(tree, last=False):
    same = lambda value: jax.tree.map(lambda _: value, tree)  # noqa: E731
    return optim.Multipliers(same(1.0), same(1.0), same(last), same(False))


def train(transform, nows, seed=0):
    """Parameters and optimizer state after a step with each of `nows`."""
    tree = small(seed)
    state = transform.init(tree)
    step = jax.jit(transform.update)
    for i, now in enumerate(nows):
        updates, state = step(small(100 + i), state, tree, now=now)
        tree = optax.apply_updates(tree, updates)
    return tree, state


def test_without_factors_it_is_optax_adamw():
    ours, _ = train(optim.build(ADAM, multipliers=ones(small(0))), [NOW] * 3)
    adamw = optax.adamw(1e-2, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
    tree = small(0)
    state = adamw.init(tree)
    for i in range(3):
        updates, state = adamw.update(small(100 + i), state, tree)
        tree = optax.apply_updates(tree, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, tree)


def test_it_is_pytorch_adamw_with_factors_and_changing_scalars():
    tree = small(0)
    decayed = factors(tree)
    nows = [
        NOW | {"lr": 1e-2 * (i + 1), "weight_decay": 0.1 * i, "trunk": 0.5 * i} for i in range(3)
    ]
    ours, _ = train(optim.build(ADAM, multipliers=decayed), nows)

    def slow(param, lr_factor, decay_factor, is_last, is_trunk, *grads):
        param = np.asarray(param, np.float64)
        m, v = np.zeros_like(param), np.zeros_like(param)
        for t, (grad, now) in enumerate(zip(grads, nows, strict=True), 1):
            grad = np.asarray(grad, np.float64)
            trunk = now["trunk"] if is_trunk else 1.0
            lr = now["last_layer_lr" if is_last else "lr"] * lr_factor * trunk
            param = param * (1 - lr * now["weight_decay"] * decay_factor * trunk)
            m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
            param = param - lr * step
        return param

    expected = jax.tree.map(slow, tree, *decayed, *(small(100 + i) for i in range(3)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, expected
    )


def test_a_frozen_last_layer_stays_while_its_moments_move():
    tree = small(0)
    transform = optim.build(ADAM, multipliers=factors(tree))
    frozen, state = train(transform, [NOW | {"last_layer_lr": 0.0}] * 2)
    kernel = frozen["dino_head"]["prototypes"]["kernel"]
    np.testing.assert_array_equal(kernel, tree["dino_head"]["prototypes"]["kernel"])
    assert np.all(np.asarray(state.nu["dino_head"]["prototypes"]["kernel"]) > 0)
    assert np.any(frozen["backbone"]["cls_token"] != tree["backbone"]["cls_token"])
    thawed, _ = train(transform, [NOW | {"last_layer_lr": 0.0}] * 2 + [NOW])
    assert np.all(thawed["dino_head"]["prototypes"]["kernel"] != kernel)


def test_each_part_is_clipped_by_its_own_norm():
    grads = small(0)
    grads["backbone"] = jax.tree.map(lambda g: g * 100, grads["backbone"])
    clip = types.SimpleNamespace(**{**vars(ADAM), "clip": 10.0})
    norms = optim.part_norms(grads)
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads["backbone"])])
    assert norms["backbone"] == pytest.approx(np.linalg.norm(flat))
    assert norms["dino_head"] < 10.0 < norms["backbone"]
    transform = optim.build(clip, multipliers=ones(grads))
    _, state = transform.update(grads, transform.init(grads), grads, now=NOW)
    scale = 10.0 / (float(norms["backbone"]) + 1e-6)
    np.testing.assert_allclose(
        state.mu["backbone"]["cls_token"], 0.1 * scale * grads["backbone"]["cls_token"], rtol=1e-5
    )
    kernel = grads["dino_head"]["prototypes"]["kernel"]
    np.testing.assert_allclose(
        state.mu["dino_head"]["prototypes"]["kernel"], 0.1 * kernel, rtol=1e-5
    )


def test_moments_of_bfloat16_parameters_are_float32():
    tree = {"backbone": {"cls_token": jnp.ones(3, jnp.bfloat16)}}
    transform = optim.build(ADAM, multipliers=ones(tree))
    state = transform.init(tree)
    updates, after = transform.update(tree, state, tree, now=NOW)
    for leaf in jax.tree.leaves([state.mu, state.nu, after.mu, after.nu, updates]):
        assert leaf.dtype == jnp.float32


def test_optimizer_errors_name_the_key():
    clip = types.SimpleNamespace(**{**vars(ADAM), "clip": 0.0})
    with pytest.raises(ValueError, match="optim.clip=0.0 is not positive"):
        optim.build(clip, multipliers=ones(small(0)))
    transform = optim.build(ADAM, multipliers=ones(small(0)))
    with pytest.raises(ValueError, match="needs params"):
        transform.update(small(0), transform.init(small(0)), now=NOW)


# A part that stays


def test_a_frozen_part_stays_to_the_last_bit_and_the_others_train_as_without_it():
    tree = jax.tree.map(lambda leaf: 0.3 * leaf, params())
    make = lambda factors: optim.build(ADAM, multipliers=factors)  # noqa: E731
    whole, held = make(factors(tree)), optim.frozen(make, multipliers=factors(tree))
    grads = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), tree)

    @jax.jit
    def both(grads, tree):
        states = whole.init(tree), held.init(tree)
        pairs = zip((whole, held), states, strict=True)
        return states[1], [optimizer.update(grads, s, tree, now=NOW)[0] for optimizer, s in pairs]

    state, (updates, frozen) = both(grads, tree)
    assert "backbone" not in state.mu and "backbone" not in state.nu
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(frozen["backbone"]))
    for head in ("dino_head", "ibot_head"):
        jax.tree.map(np.testing.assert_array_equal, frozen[head], updates[head])
    with pytest.raises(ValueError, match="needs params"):
        held.update(grads, state, now=NOW)

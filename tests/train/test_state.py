"""The state: made in place on any devices, the same everywhere, and nothing in it twice."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import params
from dinojax.models.layers import Named
from dinojax.sharding import mesh
from dinojax.train import program
from tests.support import small
from tests.support.step_keys import of_steps, words


@pytest.fixture(scope="module")
def made():
    """Programs and new states on one device and, sharded, on eight."""
    found = {}
    overrides = (
        "gram.enabled=True",
        "gram.anchor=file",
        "losses.centering=softmax",
        "data.box_size=48",
    )
    for devices in (1, 8):
        loaded = small.config(*overrides, f"mesh.devices={devices}", "mesh.strategy=fsdp")
        built = program.build(loaded, mesh.make("fsdp", devices))
        with mesh.use(built.layout):
            found[devices] = built, built.new_state()
    return found


def arrays(state):
    return [x for x in jax.tree.leaves(state) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]


def test_a_seed_makes_the_same_state_on_any_devices(made):
    small.assert_close(made[8][1], made[1][1], 1e-6)


def test_a_new_state_is_what_the_abstract_one_says(made):
    for built, state in made.values():
        with mesh.use(built.layout):
            abstract = built.abstract_state()
        for want, leaf in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
            assert (leaf.shape, leaf.dtype, leaf.sharding) == (
                want.shape,
                want.dtype,
                want.sharding,
            )


@pytest.mark.parametrize("network", ["vit", "convnext"])
def test_networks_start_from_keys_that_no_step_has(network, monkeypatch):
    if network == "vit":
        objective = program.build(small.config(), mesh.make("dp", 1)).step.objective
    else:
        objective = small.convnext("mesh.devices=1").step.objective
    seed, seen = jax.random.key(3), []

    def init(self, key, *_):
        seen.append(tuple(words(key)))
        return {"params": {}}

    monkeypatch.setattr(nn.Module, "init", init)
    params.init_params(objective, seed)
    assert len(set(seen)) == len(seen) == 3, "backbone and two heads"
    assert not set(seen) & of_steps(seed)


def test_ema_and_gram_start_as_copies_of_the_student(made):
    for _, state in made.values():
        assert small.same(state.ema, state.student)
        assert small.same(state.gram, state.student["backbone"])
        assert set(state.student) == {"backbone", "dino_head", "ibot_head"}


def test_no_two_arrays_share_memory(made):
    for _, state in made.values():
        found = [
            shard.data.unsafe_buffer_pointer()
            for leaf in arrays(state)
            for shard in leaf.addressable_shards
        ]
        assert len(set(found)) == len(found)


def test_everything_is_finite_and_every_kernel_random(made):
    state = made[1][1]
    assert all(np.all(np.isfinite(leaf)) for leaf in arrays(state))
    assert state.step == 0 and state.opt_state.count == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((state.opt_state, state.centers)))
    kernels = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.student)
        if path[-1].key == "kernel"
    }
    assert all(np.std(kernel) > 1e-3 for kernel in kernels.values())
    firsts = [kernel.ravel()[:4].tobytes() for kernel in kernels.values()]
    assert len(set(firsts)) == len(firsts), "each has its own key"


def test_each_device_holds_an_eighth_of_what_can_be_sharded(made):
    built, state = made[8]
    sharded = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.student)
        if not leaf.sharding.is_fully_replicated
    }
    assert any("prototypes" in name for name in sharded)
    assert any("blocks" in name and "qkv" in name for name in sharded)
    for tree in (state.ema, state.opt_state.mu, state.opt_state.nu):
        pairs = zip(jax.tree.leaves(state.student), jax.tree.leaves(tree), strict=True)
        assert all(a.sharding == b.sharding for a, b in pairs), "moments and ema follow"
    own = sum(leaf.addressable_shards[0].data.size for leaf in arrays(state.student))
    assert own < sum(leaf.size for leaf in arrays(state.student)) / 4


def test_the_seed_is_the_key_and_parameters_name_all_their_axes(made):
    built, state = made[1]
    assert small.same(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(0)))
    boxes = jax.tree.leaves(
        jax.eval_shape(lambda: params.init_params(built.step.objective, jax.random.key(0))),
        is_leaf=lambda leaf: isinstance(leaf, Named),
    )
    assert all(len(box.names) == box.value.ndim for box in boxes)


def test_sizes_that_do_not_divide_are_refused_by_name_before_any_memory():
    loaded = small.config("ibot_head.prototypes=60", "mesh.strategy=fsdp", "mesh.devices=8")
    built = program.build(loaded, mesh.make("fsdp", 8))
    with pytest.raises(ValueError, match=r"(?s)ibot_head/prototypes/kernel.*use 56 or 64"):
        built.abstract_state()

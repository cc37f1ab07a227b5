"""From a config to a program: what is refused, and what a program says about itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.sharding import mesh
from dinojax.train import optim, program
from dinojax.train.objective import GramSpec
from tests.support import small


def build(devices: int, *overrides: str):
    return program.build(small.config(*overrides), mesh.make("dp", devices))


def test_groups_that_straddle_devices_are_refused():
    with pytest.raises(ValueError, match="group_size=16 does not divide the 4 images"):
        build(8, "group_size=16")


def test_koleo_groups_that_straddle_micro_batches_are_refused():
    build(8, "losses.koleo_group=8")  # without micro-batches their order is the global one
    build(2, "losses.koleo_group=8", "accumulate=2")
    with pytest.raises(ValueError, match="losses.koleo_group=8 does not divide the 4 images"):
        build(4, "losses.koleo_group=8", "accumulate=2")


def test_a_gram_weight_before_there_is_an_anchor_is_refused():
    anchored = ("gram.enabled=True", "gram.anchor=ema", "gram.anchor_step=1")
    with pytest.raises(ValueError, match=r"is 1 at step 0, before the anchor .* and its value as"):
        build(1, *anchored)
    late = (f"schedules.gram_weight.{name}=0.0" for name in ("start", "peak"))
    build(1, *anchored, *late, "schedules.gram_weight.warmup=1")


def test_settings_of_a_part_are_refused_by_the_part():
    with pytest.raises(ValueError, match="augment.hue=0.1 needs three colour channels"):
        build(1, "augment.hue=0.1")


def test_the_parts_follow_their_sections():
    built = build(
        2,
        "gram.enabled=True",
        "gram.anchor=file",
        "accumulate=2",
        "model.depth=3",
        "model.remat=full",
    )
    objective = built.step.objective
    assert built.step.accumulate == 2 and built.batch_shape == (32, 40, 40, 1)
    assert (objective.backbone.spec.depth, objective.backbone.spec.remat) == (3, "full")
    assert objective.dino_head.spec.prototypes == 64
    assert isinstance(objective.gram, GramSpec) and build(1).step.objective.gram is None
    assert objective.losses.koleo_group == objective.group_size == 2
    assert build(1, "losses.koleo_group=4").step.objective.losses.koleo_group == 4
    transform = built.eval_transform
    assert (transform.crop_size, transform.normalize) == (32, "per_crop")


def test_now_is_the_schedules_in_float32():
    loaded, built = small.config(), build(1)
    schedules = optim.schedules(
        loaded.schedules,
        num_steps=loaded.num_steps,
        batch_size=loaded.batch_size,
        freeze_last_layer=loaded.optim.freeze_last_layer,
        lr_scaling=loaded.optim.lr_scaling,
    )
    for step in (0, 1):
        now = built.now(step)
        assert now == {name: np.float32(value) for name, value in schedules(step).items()}
        assert all(type(value) is np.float32 for value in now.values())


def test_abstract_inputs_spread_images_and_hold_no_memory():
    built = build(8)
    with mesh.use(built.layout):
        state, batch, now = built.abstract_inputs()
    leaves = jax.tree.leaves((state, batch, now))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert batch["images"].sharding.shard_shape(batch["images"].shape) == (4, 40, 40, 1)
    assert batch["sizes"].shape == (32, 2) and batch["sizes"].dtype == jnp.int32
    assert set(now) == set(built.now(0))


def test_embedding_does_not_depend_on_devices_or_on_filling_up():
    images = np.random.default_rng(0).normal(size=(5, 32, 32, 1)).astype(np.float32)
    found = {}
    for devices in (1, 4):
        built = build(devices)
        with mesh.use(built.layout):
            params = small.numbers(built).ema["backbone"]
            embed = built.embed()
            found[devices] = [np.asarray(part) for part in embed(params, images)]
            if devices == 1:
                alone = [np.asarray(part) for part in embed(params, images[:1])]
    cls, mean, patches = found[1]
    assert cls.shape == mean.shape == (5, 16) and patches.shape == (5, 16, 16)
    np.testing.assert_allclose(mean, patches.mean(axis=1), rtol=1e-5, atol=1e-6)
    for got, want in zip(found[4], found[1], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    for got, want in zip(alone, found[1], strict=True):
        np.testing.assert_allclose(got, want[:1], atol=1e-5)

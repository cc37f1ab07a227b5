"""Which output meets which loss: what may influence what, and the numbers of uniform networks."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.augment.masks import mask_counts
from dinojax.augment.views import Views
from dinojax.losses.ibot import masked_patches
from dinojax.losses.koleo import by_crop, koleo_loss
from dinojax.ops import rng as keys
from dinojax.sharding import mesh
from dinojax.train import program
from dinojax.train.batch_types import Inputs
from dinojax.train.objective import Objective
from tests.support import small

B, V, SIDE = 8, 4, 32  # images, images of a group, pixels of a global crop
K = 64
COUNTS = mask_counts(2 * V, 16, rate=0.5, ratio=(0.1, 0.5))
NOW = {"teacher_temperature": 0.07, "local_weight": 1.0, "gram_weight": 1.0}


def inputs(objective: Objective, seed: int = 0) -> Inputs:
    """Crops of noise; half of the crops of each group are masked."""
    rng = np.random.default_rng(seed)
    side = SIDE // objective.backbone.spec.patch_size
    masks_BGP = np.zeros((B, 2, side**2), bool)
    for group in masks_BGP.reshape(B // V, 2 * V, -1):  # a view
        rows = rng.permutation(2 * V)
        for row, count in zip(rows[: len(COUNTS)], COUNTS, strict=True):
            group[row, rng.permutation(side**2)[:count]] = True
    flat_UP = masks_BGP.reshape(B // V, -1)
    masked_UM = np.stack([np.flatnonzero(row) for row in flat_UP])
    counts_UR = masks_BGP.reshape(B // V, 2 * V, -1).sum(2)
    weights_UM = 1.0 / np.take_along_axis(counts_UR, masked_UM // side**2, 1)
    views = Views(
        global_BGHWC=rng.normal(size=(B, 2, SIDE, SIDE, 1)).astype(np.float32),
        local_BLHWC=rng.normal(size=(B, 2, 16, 16, 1)).astype(np.float32),
        gram_BGHWC=None,
        masks_BGP=masks_BGP,
        masked_UM=masked_UM.astype(np.int32),
        mask_weights_UM=weights_UM.astype(np.float32),
    )
    draws = [keys.group_keys(jax.random.key(seed), name, B // V) for name in ("drop", "rope")]
    return Inputs(views, *draws)


@pytest.fixture(scope="module")
def at():
    """The objective with a gram network, its two sides compiled, and numbers to feed them."""
    overrides = ("model.drop_path=0.0", "rope.rescale=None", "group_size=4", "batch_size=8")
    anchor = () if "gram.teacher=ema" in overrides else ("gram.anchor=file",)
    loaded = small.config(*overrides, *anchor, "gram.enabled=True", "mesh.devices=1")
    built = program.build(loaded, mesh.make("dp", 1))
    objective, state = built.step.objective, small.numbers(built)

    def teacher(ema, gram, inputs, now):
        outputs = objective.teacher_outputs(ema, gram, inputs)
        return outputs, objective.assign(ema, outputs, {}, now)[0]

    def student(params, inputs, targets, now):
        return objective.loss(params, inputs, targets, now)[1]

    numbers = inputs(objective)
    fast = [
        jax.jit(f).lower(*args).compile(compiler_options=small.FAST)
        for f, args in (
            (teacher, (state.ema, state.gram, numbers, NOW)),
            (student, (state.student, numbers, *_targets(teacher, state, numbers), NOW)),
        )
    ]
    return SimpleNamespace(
        objective=objective, state=state, inputs=numbers, teacher=fast[0], student=fast[1]
    )


def _targets(teacher, state, numbers):
    return (jax.eval_shape(teacher, state.ema, state.gram, numbers, NOW)[1],)


def terms(at, *, params=None, inputs=None, targets=None, **now):
    """Loss terms of the student, with something changed."""
    numbers = at.inputs if inputs is None else inputs
    if targets is None:
        targets = at.teacher(at.state.ema, at.state.gram, numbers, NOW)[1]
    params = at.state.student if params is None else params
    return jax.device_get(at.student(params, numbers, targets, NOW | now))


def with_views(at, **changes) -> Inputs:
    return dataclasses.replace(at.inputs, views=dataclasses.replace(at.inputs.views, **changes))


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def test_uniform_students_have_the_values_of_chance(at):
    """DINO ln K; iBOT half of it, because half of the crops are masked and all are counted."""
    blank = at.state.student | {name: zeros(at.state.student[name]) for name in HEADS}
    found = terms(at, params=blank)
    for name, share in (("dino_local", 1.0), ("dino_global", 1.0), ("ibot", 0.5)):
        np.testing.assert_allclose(found[name], share * np.log(K), rtol=1e-5)


HEADS = ("dino_head", "ibot_head")


@pytest.mark.parametrize("temperature", [0.07, 0.04])
def test_targets_are_distributions_over_the_whole_batch(at, temperature):
    now = NOW | {"teacher_temperature": temperature}
    outputs, targets = at.teacher(at.state.ema, at.state.gram, at.inputs, now)
    columns = jax.device_get(targets.columns)
    dino, ibot = (
        small.dense(jax.device_get(rows), columns[name])
        for name, rows in (("dino", targets.dino), ("ibot", targets.ibot))
    )
    assert dino.shape == (B, 2, K)
    assert ibot.shape == (*at.inputs.views.masked_UM.shape, K)
    for found in (dino, ibot):
        np.testing.assert_allclose(np.sum(found, axis=-1), 1.0, rtol=1e-5)
    logits = np.asarray(outputs.dino_BGZ, np.float64) @ columns["dino"].kernel_ZK
    logits = logits.reshape(2 * B, K)
    plan = np.exp(logits / temperature)
    for _ in range(3):
        plan /= plan.sum(axis=0)
        plan /= plan.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dino.reshape(2 * B, K), plan, atol=1e-5)


def test_the_total_is_the_weighted_sum_of_its_terms(at):
    """Two cross pairs of global crops, four of local with global ones; KoLeo once per crop."""
    now = {"local_weight": 0.5, "gram_weight": 3.0}
    found = {name: float(value) for name, value in terms(at, **now).items()}
    spec = at.objective.losses
    dino = 4 / 6 * 0.5 * found["dino_local"] + 2 / 6 * found["dino_global"]
    want = spec.dino * dino + spec.ibot * found["ibot"] + spec.koleo * 2 * found["koleo"]
    assert found["gram"] > 0.01
    np.testing.assert_allclose(found["total"], want + 3.0 * found["gram"], rtol=1e-5)
    plain = terms(at)
    assert all(found[name] == plain[name] for name in found if name != "total")


def test_pixels_under_a_mask_reach_the_teacher_but_not_the_student(at):
    views, patch = at.inputs.views, at.objective.backbone.spec.patch_size
    side = SIDE // patch
    hidden = views.masks_BGP.reshape(B, 2, side, 1, side, 1)
    hidden = np.broadcast_to(hidden, (B, 2, side, patch, side, patch)).reshape(B, 2, SIDE, SIDE, 1)
    changed = with_views(at, global_BGHWC=np.where(hidden, 9.0, views.global_BGHWC))
    outputs, targets = at.teacher(at.state.ema, at.state.gram, at.inputs, NOW)
    saw, _ = at.teacher(at.state.ema, at.state.gram, changed, NOW)
    assert small.same(terms(at, inputs=changed, targets=targets), terms(at, targets=targets))
    masked_crops = views.masks_BGP.any(axis=2)
    moved = np.abs(saw.dino_BGZ - outputs.dino_BGZ).max(axis=2) > 1e-4
    np.testing.assert_array_equal(moved, masked_crops)
    shown = with_views(at, global_BGHWC=np.where(hidden, views.global_BGHWC, 9.0))
    assert not small.same(terms(at, inputs=shown, targets=targets), terms(at, targets=targets))


@pytest.mark.parametrize("frozen", [None, "networks"], ids=["ema", "frozen teacher"])
def test_a_student_of_a_frozen_teacher_sees_every_patch(at, frozen):
    """Without one it does not see what is masked; local crops are whole in both."""
    seen = []

    def apply(params, sets, masks, draws, *, train):
        seen.extend(masks)

    backbone = SimpleNamespace(spec=at.objective.backbone.spec, apply=apply)
    objective = dataclasses.replace(at.objective, backbone=backbone, frozen=frozen)
    objective._student_features({}, at.inputs)
    hidden = at.inputs.views.masks_BGP.reshape(2 * B, -1)
    assert (seen[0] is None) if frozen else np.array_equal(seen[0], hidden)
    assert seen[1] is None and len(seen) == 2


def test_ibot_reads_the_masked_patches_of_each_group(at):
    """Targets in another order fit other patches, so the loss changes; DINO does not care."""
    _, targets = at.teacher(at.state.ema, at.state.gram, at.inputs, NOW)
    swapped = dataclasses.replace(targets, ibot=jax.tree.map(lambda x: x[::-1], targets.ibot))
    got, plain = terms(at, targets=swapped), terms(at, targets=targets)
    assert abs(got["ibot"] - plain["ibot"]) > 1e-5
    assert got["dino_global"] == plain["dino_global"]
    patches = np.arange(B * 2 * 16, dtype=np.float32).reshape(B * 2, 16, 1)
    picked = masked_patches(patches, at.inputs.views.masks_BGP, at.inputs.views.masked_UM)
    want = np.flatnonzero(at.inputs.views.masks_BGP)
    np.testing.assert_array_equal(np.ravel(picked), want)


def test_an_anchor_equal_to_the_student_has_no_gram_loss(at):
    unmasked = with_views(at, masks_BGP=np.zeros_like(at.inputs.views.masks_BGP))
    same = at.state.student["backbone"]
    _, targets = at.teacher(at.state.ema, same, unmasked, NOW)
    assert terms(at, inputs=unmasked, targets=targets)["gram"] < 1e-10
    assert terms(at, targets=targets)["gram"] > 1e-4, "masks are what then differs"


def test_nothing_flows_back_into_targets_or_anchor(at):
    def total(ema, gram):
        outputs = at.objective.teacher_outputs(ema, gram, at.inputs)
        targets, _ = at.objective.assign(at.state.ema, outputs, {}, NOW)
        return at.objective.loss(at.state.student, at.inputs, targets, NOW)[0]

    gradient = jax.jit(jax.grad(total, argnums=(0, 1))).lower(at.state.ema, at.state.gram)
    found = gradient.compile(compiler_options=small.FAST)(at.state.ema, at.state.gram)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_neighbours_are_sought_among_the_same_crop_of_a_group():
    cls_BGD = np.random.default_rng(0).normal(size=(8, 2, 5)).astype(np.float32)

    def koleo(order):
        return float(koleo_loss(by_crop(jnp.asarray(cls_BGD[order]), 4)))

    plain = koleo(range(8))
    within = koleo([2, 0, 3, 1, 5, 4, 7, 6])
    across = koleo([4, 1, 2, 3, 0, 5, 6, 7])
    np.testing.assert_allclose(within, plain, rtol=1e-6)
    assert abs(across - plain) > 1e-3
    slow = []
    unit = cls_BGD / np.linalg.norm(cls_BGD, axis=2, keepdims=True)
    for image in range(8):
        for crop in range(2):
            group = [i for i in range(image // 4 * 4, image // 4 * 4 + 4) if i != image]
            gaps = [np.linalg.norm(unit[image, crop] - unit[i, crop]) for i in group]
            slow.append(-np.log(min(gaps)))
    np.testing.assert_allclose(plain, np.mean(slow), rtol=1e-5)


@pytest.mark.parametrize("tokens", ["all", "masked", "unmasked"])
def test_the_gram_loss_of_a_group_compares_the_chosen_patches(tokens, at):
    spec = dataclasses.replace(at.objective.gram, per_image=False, tokens=tokens)
    objective = dataclasses.replace(at.objective, gram=spec)
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(B, 2, 16, 3)).astype(np.float32) for _ in range(2))
    got = objective._gram(student, teacher, at.inputs.views)
    hidden = at.inputs.views.masks_BGP.reshape(B // V, -1)
    chosen = {"all": hidden | True, "masked": hidden, "unmasked": ~hidden}[tokens]
    losses = []
    for group, rows in enumerate(chosen):
        both = [x.reshape(B // V, -1, 3)[group][rows] for x in (student, teacher)]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in both]
        losses.append(np.mean((unit[0] @ unit[0].T - unit[1] @ unit[1].T) ** 2))
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)

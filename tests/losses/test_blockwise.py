"""Scores in blocks against the plain definitions in float64, in value and gradient."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import logits_memory
from dinojax.losses import blockwise, blockwise_logits
from dinojax.losses.dino import dino_loss, pair_mean
from dinojax.losses.ibot import ibot_loss, weighted_mean
from dinojax.losses.sinkhorn import sinkhorn, softmax_targets, update_center
from dinojax.sharding import mesh
from tests.support import small

B, S, T, Z, K = 16, 3, 2, 8, 512
STUDENT, TEACHER = 0.1, 0.07
# Layout -> what makes it; prototypes are whole, gathered, gathered in groups, or stay sharded.
PLACES = {
    "one": None,
    "dp": ("dp", {}),
    "fsdp": ("fsdp", {}),
    "hsdp": ("hsdp", {}),
    "tensor": ("fsdp_tp", {"replicas": 2, "tensor": 2}),
}


def unit(*shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def numbers():
    """Rows and kernels of student and teacher, float64."""
    return {
        "student": unit(B, S, Z, seed=0),
        "kernel": np.random.default_rng(1).normal(size=(Z, K)),
        "teacher": unit(B, T, Z, seed=2),
        "teacher_kernel": np.random.default_rng(3).normal(size=(Z, K)),
        "weights": np.random.default_rng(4).uniform(size=B),
    }


def plain(rows, kernel, *, centering, numbers):
    """(DINO + iBOT loss, targets) by the definitions."""
    logits = jnp.asarray(numbers["teacher"] @ numbers["teacher_kernel"]).reshape(-1, K)
    if centering == "sinkhorn":
        targets = sinkhorn(logits, TEACHER)
    else:
        targets = softmax_targets(logits, jnp.asarray(center()), TEACHER)
    targets = targets.reshape(B, T, K)
    scores = rows @ kernel
    dino = dino_loss(scores[:, :T], targets, temperature=STUDENT, skip_same_crop=True)
    ibot = ibot_loss(
        scores[:, 2],
        targets[:, 0],
        jnp.asarray(numbers["weights"]),
        num_crops=B,
        temperature=STUDENT,
    )
    return dino + ibot, targets


def center():
    return np.random.default_rng(5).normal(size=K)


def in_blocks(rows, kernel, others, *, centering):
    """The same as factors; others: rows and kernel of the teacher, weights."""
    teacher, teacher_kernel, weights, center_K = others
    if centering == "sinkhorn":
        targets = blockwise.sinkhorn_factors(teacher, teacher_kernel, TEACHER)
    else:
        targets = blockwise.softmax_factors(teacher, teacher_kernel, TEACHER, center_K=center_K)
    loss_BST, entropy_BS = blockwise.cross_entropy(rows, kernel, targets, STUDENT)
    dino = pair_mean(loss_BST[:, :T], skip_same_crop=True)
    ibot = weighted_mean(loss_BST[:, 2, 0], weights, num_crops=B)
    return dino + ibot, (targets, entropy_BS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("centering", ["sinkhorn", "softmax"])
def test_blocks_equal_the_definitions_wherever_prototypes_are(
    place, centering, numbers, monkeypatch
):
    monkeypatch.setattr(blockwise_logits, "BLOCK_BYTES", 1)  # blocks as small as they get
    with jax.enable_x64(True):
        both = jnp.asarray(numbers["student"]), jnp.asarray(numbers["kernel"])
        (want, targets), grads = jax.value_and_grad(
            lambda *x: plain(*x, centering=centering, numbers=numbers), (0, 1), has_aux=True
        )(*both)
        targets, student = np.asarray(targets), numbers["student"] @ numbers["kernel"] / STUDENT
    names = ("student", "kernel", "teacher", "teacher_kernel", "weights")
    rows, kernel, *others = (numbers[name].astype(np.float32) for name in names)
    others = (*others, center().astype(np.float32))

    def value_and_grad(rows, kernel, others):
        function = lambda *x: in_blocks(*x, others, centering=centering)  # noqa: E731
        return jax.value_and_grad(function, (0, 1), has_aux=True)(rows, kernel)

    made = PLACES[place]
    layout = mesh.make("dp", 1) if made is None else mesh.make(made[0], **made[1])
    assert blockwise_logits.num_blocks(B * T, K, 1) == 4
    with mesh.use(layout):
        kernel = jax.device_put(kernel, layout.sharding(None, "prototype"))
        found = jax.device_get(jax.jit(value_and_grad)(rows, kernel, others))
    (value, ((target_rows, columns), entropy)), got = found
    np.testing.assert_allclose(value, want, rtol=1e-5)
    small.assert_close(got, jax.device_get(grads))
    np.testing.assert_allclose(small.dense(target_rows, columns), targets, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(target_rows.first_BT, targets.argmax(-1))
    np.testing.assert_allclose(target_rows.largest_BT, targets.max(-1), rtol=1e-4)
    logs = np.log(np.maximum(targets, 1e-300))
    want = -(targets * logs).sum(-1)
    np.testing.assert_allclose(target_rows.entropy_BT, want, rtol=1e-4, atol=1e-5)
    probs = np.exp(student - student.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    want = -(probs * np.log(probs)).sum(-1)
    np.testing.assert_allclose(entropy, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_losses_take_at_most_three_tenths_of_the_memory_of_the_definitions():
    """For 262,144 prototypes stored over eight devices, 16 images on each."""
    asked = {"target": "cpu:8", "images": 16, "bottleneck": 512, "prototypes": 262_144}
    layout, args = mesh.make("fsdp"), argparse.Namespace(**asked)
    with mesh.use(layout):
        ours, plain = (
            logits_memory.peak(function, args, layout)
            for function in (logits_memory.in_blocks, logits_memory.plainly)
        )
    assert ours <= 0.3 * plain


def test_blocks_of_extreme_scores_are_finite(monkeypatch):
    monkeypatch.setattr(blockwise_logits, "BLOCK_BYTES", 1)
    rows, kernel = 1e3 * unit(B, T, Z, seed=0), unit(Z, K, seed=1)
    rows, kernel = (jnp.asarray(x, jnp.float32) for x in (rows, kernel))
    targets = blockwise.sinkhorn_factors(rows, kernel, 0.04)
    np.testing.assert_allclose(small.dense(*targets).sum(-1), 1.0, rtol=1e-3)
    loss = lambda *x: jnp.mean(blockwise.cross_entropy(*x, targets, 0.1)[0])  # noqa: E731
    for x in jax.tree.leaves(jax.value_and_grad(loss, (0, 1))(rows, kernel)):
        assert np.all(np.isfinite(x))


def test_targets_have_no_gradient_and_losses_widen_bfloat16():
    rows, kernel = (jnp.asarray(unit(*s, seed=0), jnp.bfloat16) for s in ((B, T, Z), (Z, K)))

    def loss(rows, kernel):
        targets = blockwise.sinkhorn_factors(rows, kernel, 0.07)
        value, _ = blockwise.cross_entropy(
            jax.lax.stop_gradient(rows), jax.lax.stop_gradient(kernel), targets, 0.1
        )
        assert value.dtype == jnp.float32
        return jnp.mean(value)

    assert not any(np.any(x) for x in jax.grad(loss, (0, 1))(rows, kernel))


def test_the_mean_logit_moves_the_center_as_the_definition_does(numbers):
    rows, kernel = (numbers[name].astype(np.float32) for name in ("teacher", "teacher_kernel"))
    want = update_center(jnp.zeros(K), jnp.asarray(rows @ kernel), 0.0)
    got = blockwise.mean_logits(jnp.asarray(rows), jnp.asarray(kernel))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    "rows,columns,want",
    [
        (100, 512, 1),  # fits
        (1228, 98_304, 8),  # the patches of 16 images of the 7B recipe
        (160, 262_144, 4),
        (10**6, 65_536, 512),  # never narrower than 128
        (10**6, 65_537, 1),  # a prime
    ],
)
def test_the_number_of_blocks(rows, columns, want):
    assert blockwise_logits.num_blocks(rows, columns) == want


def test_sinkhorn_without_iterations_is_an_error():
    with pytest.raises(ValueError, match="sinkhorn_iterations=0"):
        blockwise.sinkhorn_factors(jnp.ones((2, 1, 3)), jnp.ones((3, 4)), 0.1, num_iterations=0)


def test_no_rows_have_no_loss():
    """With masks.rate=0 nothing is masked."""
    rows, kernel = jnp.ones((0, 1, Z)), jnp.ones((Z, K))
    targets = blockwise.sinkhorn_factors(rows, kernel, TEACHER)

    def loss(kernel):
        return jnp.sum(blockwise.cross_entropy(rows, kernel, targets, STUDENT)[0])

    value, grad = jax.value_and_grad(loss)(kernel)
    assert value == 0 and not np.any(grad)

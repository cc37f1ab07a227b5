"""Scores over prototypes in blocks: targets and cross-entropy without an array [tokens, K].

A score is a logit over a temperature, and logits are rows [..., Z] times a kernel [Z, K]. All that
the losses need are sums over K of functions of scores, so these are computed block after block of
prototypes, forward and backward, and thrown away; the loss gathers sharded prototypes a block at a
time too, and scatters their gradient likewise. Targets are not stored either: of Sinkhorn and
of softmax alike they are exp(score + log_u of the prototype + log_v of the row).

On a mesh each device works on the prototypes of its place along the tensor axis (on all of them
where that axis has size 1) and on the rows of the devices it shares that axis with. Equal in value
and gradient to losses/sinkhorn.py, dino.py and ibot.py, which say what is meant.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dinojax.losses.blockwise_logits import (
    Kernel,
    Scores,
    add_block,
    column_sums,
    finish,
    no_sums,
    over_blocks,
    row_sums,
    wide,
)
from dinojax.losses.sharded import place
from dinojax.sharding import gather


@struct.dataclass
class Columns:
    """What targets are made from besides their rows."""

    kernel_ZK: jax.Array  # of the teacher, in the dtype of rows
    log_u_K: jax.Array
    temperature: jax.Array


@struct.dataclass
class Rows:
    """Targets of T crops (or one patch) of B images; leading axes may have other meanings."""

    rows_BTZ: jax.Array  # the teacher's bottleneck
    log_v_BT: jax.Array
    entropy_BT: jax.Array  # of the targets, in nats
    largest_BT: jax.Array  # target
    first_BT: jax.Array  # int32, the prototype that has it


def sinkhorn_factors(
    rows_BTZ: jax.Array, kernel_ZK: jax.Array, temperature: Any, *, num_iterations: int = 3
) -> tuple[Rows, Columns]:
    """The targets of losses.sinkhorn.sinkhorn for logits rows @ kernel, all rows taken together.

    Raises ValueError when num_iterations is below 1.
    """
    if num_iterations < 1:
        raise ValueError(
            f"losses.sinkhorn_iterations={num_iterations} is not positive; 3 is the usual number."
        )

    def assign(where, rows_NZ, kernel_ZK, temperature):
        scores = Scores(rows_NZ, Kernel(kernel_ZK), temperature)
        log_v_N = jnp.zeros(rows_NZ.shape[0], scores.dtype)
        for _ in range(num_iterations):
            log_u_K = -column_sums(where, scores, log_v_N)
            found = row_sums(where, scores, log_u_K)
            log_v_N = -found[0]
        return log_u_K, found

    return _assign(assign, rows_BTZ, kernel_ZK, temperature)


def softmax_factors(
    rows_BTZ: jax.Array, kernel_ZK: jax.Array, temperature: Any, *, center_K: jax.Array
) -> tuple[Rows, Columns]:
    """The targets of losses.sinkhorn.softmax_targets for logits rows @ kernel."""

    def assign(where, rows_NZ, kernel_ZK, temperature):
        scores = Scores(rows_NZ, Kernel(kernel_ZK), temperature)
        log_u_K = where.own_columns(-center_K.astype(scores.dtype) / temperature)
        return log_u_K, row_sums(where, scores, log_u_K)

    return _assign(assign, rows_BTZ, kernel_ZK, temperature)


def mean_logits(rows_BTZ: jax.Array, kernel_ZK: jax.Array) -> jax.Array:
    """Mean logit [K] over all rows, which is that of the mean row."""
    kernel_ZK = kernel_ZK.astype(rows_BTZ.dtype)  # as products are of it
    rows_BTZ, kernel_ZK = (x.astype(wide(x.dtype)) for x in (rows_BTZ, kernel_ZK))
    mean_Z = jnp.mean(rows_BTZ.reshape(-1, rows_BTZ.shape[-1]), axis=0)
    return jnp.einsum("z,zk->k", mean_Z, kernel_ZK, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(
    rows_BSZ: jax.Array, kernel_ZK: jax.Array, targets: tuple[Rows, Columns], temperature: float
) -> tuple[jax.Array, jax.Array]:
    """(-sum_k targets_t log softmax(scores_s) [B, S, T], entropy of softmax(scores_s) [B, S]).

    Of every student row s with every target t of the same b. Float32 at least; gradient of the
    first through student rows and kernel alone. Products are in the dtype of rows, and the kernel's
    gradient is summed, over rows and devices, in that of the kernel.
    """
    return _cross_entropy_fwd(rows_BSZ, kernel_ZK, targets, temperature)[0]


def _cross_entropy_fwd(rows_BSZ, kernel_ZK, targets, temperature):
    def forward(where, rows_BSZ, rows, kernel_ZK, columns):
        kernel = Kernel(kernel_ZK.astype(rows_BSZ.dtype), where)
        scores = Scores(rows_BSZ, kernel, temperature)
        target_block = _targets_of(where, rows, columns)

        def add(carry, at):
            sums, cross_BST = carry
            block_BSK = scores.block(at)
            sums = add_block(sums, block_BSK, lambda column: kernel.number(at, column))
            product = jnp.einsum("bsk,btk->bst", block_BSK, target_block(at), precision="highest")
            return (sums, cross_BST + product), None

        zeros = jnp.zeros((*rows_BSZ.shape[:2], rows.rows_BTZ.shape[1]), scores.dtype)
        start = (no_sums(rows_BSZ.shape[:2], scores.dtype), zeros)
        (sums, cross_BST), _ = over_blocks(add, start, scores)
        log_sum_BS, entropy_BS, _, _ = finish(where, sums, kernel.num_columns)
        loss_BST = log_sum_BS[:, :, None] - where.sum_columns(cross_BST)
        return where.own_rows((loss_BST, entropy_BS, log_sum_BS))

    loss_BST, entropy_BS, log_sum_BS = _placed(forward, rows_BSZ, kernel_ZK, targets)
    return (loss_BST, entropy_BS), (rows_BSZ, kernel_ZK, targets, log_sum_BS)


def _cross_entropy_bwd(temperature, kept, cotangents):
    rows_BSZ, kernel_ZK, targets, log_sum_BS = kept
    grad_BST, _ = cotangents

    def backward(where, rows_BSZ, rows, kernel_ZK, columns, log_sum_BS, grad_BST):
        kernel = Kernel(kernel_ZK.astype(rows_BSZ.dtype), where)
        scores = Scores(rows_BSZ, kernel, temperature)
        target_block = _targets_of(where, rows, columns)
        weight_BS1 = jnp.sum(grad_BST, axis=2, keepdims=True)

        def add(carry, at):
            grad_rows, grad_kernel = carry
            block_ZK = kernel.block(at)
            probs_BSK = jnp.exp(scores.block(at) - log_sum_BS[:, :, None])
            pull = jnp.einsum("bst,btk->bsk", grad_BST, target_block(at), precision="highest")
            grad_BSK = ((weight_BS1 * probs_BSK - pull) / temperature).astype(rows_BSZ.dtype)
            product = functools.partial(jnp.einsum, "bsk,zk->bsz")
            grad_rows += gather.summed(product, grad_BSK, block_ZK, dtype=grad_rows.dtype)
            product = functools.partial(jnp.einsum, "bsk,bsz->zk")
            block = gather.summed(product, grad_BSK, rows_BSZ, dtype=grad_kernel.dtype)
            own, start = where.stored_kernel(block), kernel.stored(at)[0]
            grad_kernel = jax.lax.dynamic_update_slice_in_dim(grad_kernel, own, start, 1)
            return (grad_rows, grad_kernel), None

        zeros = jnp.zeros(rows_BSZ.shape, scores.dtype), jnp.zeros_like(kernel_ZK)
        (grad_rows, grad_kernel), _ = over_blocks(add, zeros, scores)
        return where.stored_rows(grad_rows).astype(rows_BSZ.dtype), grad_kernel

    extra = (log_sum_BS, grad_BST)
    grads = _placed(backward, rows_BSZ, kernel_ZK, targets, *extra, to_kernel=True)
    return *grads, None


cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _targets_of(where, rows: Rows, columns: Columns) -> Callable:
    """block -> that block of the targets, [B, T, columns of the block]."""
    kernel = Kernel(columns.kernel_ZK, where)
    scores = Scores(rows.rows_BTZ, kernel, columns.temperature)

    def block(at):
        log_u_K = kernel.columns(columns.log_u_K, at)
        return jnp.exp(scores.block(at) + log_u_K[None, None] + rows.log_v_BT[..., None])

    return block


def _assign(function: Callable, rows_BTZ, kernel_ZK, temperature) -> tuple[Rows, Columns]:
    """Run `function` where rows and prototypes are, and give its factors back with them."""
    rows_BTZ, kernel_ZK = jax.lax.stop_gradient((rows_BTZ, kernel_ZK))
    kernel_ZK = kernel_ZK.astype(rows_BTZ.dtype)
    temperature = jnp.asarray(temperature, wide(rows_BTZ.dtype))

    def on_device(where, rows_BTZ, kernel_ZK):
        rows_NZ = rows_BTZ.reshape(-1, rows_BTZ.shape[-1])
        log_u_K, found = function(where, rows_NZ, kernel_ZK, temperature)
        found = [x.reshape(rows_BTZ.shape[:-1]) for x in found]
        return log_u_K, *where.own_rows(found)

    where = place()
    log_u_K, *found = where.run(
        lambda rows_BTZ, kernel_ZK: on_device(
            where, where.all_rows(rows_BTZ), where.gather(kernel_ZK)
        ),
        (rows_BTZ, kernel_ZK),
        takes=("rows", "kernel"),
        gives=("columns", *["rows"] * 4),
    )
    log_sum, *stats = found
    rows = Rows(rows_BTZ, -log_sum, *stats)
    return jax.lax.stop_gradient((rows, Columns(kernel_ZK, log_u_K, temperature)))


def _placed(function, rows_BSZ, kernel_ZK, targets, *extra, to_kernel: bool = False):
    """function(where, student rows, target rows, student kernel, target columns, *extra)."""
    where, (rows, columns) = place(), targets

    def on_device(rows_BSZ, rows, extra, kernel_ZK, teacher_ZK, log_u_K, temperature):
        rows_BSZ, rows, extra = where.all_rows((rows_BSZ, rows, extra))
        columns = Columns(teacher_ZK, log_u_K, temperature)
        return function(where, rows_BSZ, rows, kernel_ZK, columns, *extra)

    return where.run(
        on_device,
        (rows_BSZ, rows, extra, kernel_ZK)
        + (columns.kernel_ZK, columns.log_u_K, columns.temperature),
        takes=("rows", "rows", "rows", "kernel", "kernel", "columns", "scalar"),
        gives=("rows", "kernel") if to_kernel else ("rows",) * 3,
    )

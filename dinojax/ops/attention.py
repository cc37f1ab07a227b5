"""Softmax attention, softmax(q k^T / sqrt(E)) v, through one function with named implementations.

`plain` is the definition; the others compute the same in kernels of other libraries and are
compared with it, forward and backward, before a run uses them (`choose`).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.sharding import mesh

# The order in which "auto" tries. On CPU (2 cores, 201 and 41 tokens, forward and backward) xla
# and plain were within 20 % of each other, either way round, so the definition itself is used.
ORDER = {"gpu": ("cudnn", "xla"), "tpu": ("splash", "xla"), "cpu": ("plain",)}
# Largest difference to plain in float32, as a share of the largest value: a few roundings.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}


@dataclasses.dataclass(frozen=True)
class Choice:
    implementation: str
    reasons: list[str]  # one line per implementation tried, for the log


def attention(
    q_BNAE,
    k_BNAE,
    v_BNAE,
    *,
    implementation: str,
    num_valid: int | None = None,
    causal: bool = False,
):
    """Attention of every token to every valid token of its own sequence: [B, N, A, E].

    num_valid: tokens from this position on are padding. They have no influence at all (NaN is
    fine), get no gradient, and their outputs are 0. causal: a token sees none behind it.
    Raises ValueError for an unknown implementation or a num_valid outside 1..N.
    """
    _check_name(implementation, IMPLEMENTATIONS)
    num_tokens = q_BNAE.shape[1]
    valid = num_tokens if num_valid is None else num_valid
    if not 1 <= valid <= num_tokens:
        raise ValueError(f"num_valid={num_valid} is not within 1 to the {num_tokens} tokens.")

    compute = _compute(implementation, causal)
    if implementation in OPAQUE:  # the partitioner cannot look inside: one call per device
        compute = functools.partial(mesh.per_group, compute)
    out_BNAE = compute(q_BNAE[:, :valid], k_BNAE[:, :valid], v_BNAE[:, :valid])
    return _pad_tokens(out_BNAE, num_tokens)


def plain(q_BNAE, k_BNAE, v_BNAE, *, causal: bool = False):
    """The definition, with logits and softmax in at least float32.

    Heads are moved before tokens first: XLA's CPU backend takes a third less time then.
    """
    wide = jnp.promote_types(q_BNAE.dtype, jnp.float32)
    q_BANE, k_BANE, v_BANE = (x.swapaxes(1, 2) for x in (q_BNAE, k_BNAE, v_BNAE))
    logits_BANM = jnp.einsum("bane,bame->banm", q_BANE, k_BANE, preferred_element_type=wide)
    if causal:
        seen_NM = jnp.tril(jnp.ones(logits_BANM.shape[-2:], bool))
        logits_BANM = jnp.where(seen_NM[None, None], logits_BANM, -jnp.inf)
    probs_BANM = jax.nn.softmax(logits_BANM / math.sqrt(q_BNAE.shape[-1]))
    out_BANE = jnp.einsum("banm,bame->bane", probs_BANM.astype(v_BNAE.dtype), v_BANE)
    return out_BANE.swapaxes(1, 2)


def xla(q_BNAE, k_BNAE, v_BNAE, *, causal: bool = False):
    return jax.nn.dot_product_attention(
        q_BNAE, k_BNAE, v_BNAE, is_causal=causal, implementation="xla"
    )


def cudnn(q_BNAE, k_BNAE, v_BNAE, *, causal: bool = False):
    """cuDNN's fused attention. float16 and bfloat16 on NVIDIA only."""
    B, N = q_BNAE.shape[:2]
    padded = math.ceil(N / 8) * 8  # its backward pass refuses odd lengths; 8 keeps rows aligned
    if padded == N:
        return jax.nn.dot_product_attention(
            q_BNAE, k_BNAE, v_BNAE, is_causal=causal, implementation="cudnn"
        )
    lengths_B = jnp.full((B,), N, jnp.int32)
    out_BNAE = jax.nn.dot_product_attention(
        *(_pad_tokens(x_BNAE, padded) for x_BNAE in (q_BNAE, k_BNAE, v_BNAE)),
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        is_causal=causal,
        implementation="cudnn",
    )
    return out_BNAE[:, :N]


def splash(q_BNAE, k_BNAE, v_BNAE, *, causal: bool = False, interpret: bool = False):
    """The splash attention TPU kernel. interpret: run its meaning on any backend, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, N, A, E = q_BNAE.shape
    padded = math.ceil(N / 128) * 128  # the kernel works on blocks of whole 128-wide registers
    block = next(size for size in (512, 384, 256, 128) if padded % size == 0)
    mask = masks.CausalMask if causal else masks.FullMask
    attend = kernels.make_splash_mha(
        masks.MultiHeadMask([mask((padded, padded))] * A),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    # Tokens attend within their own segment: real ones never see padding.
    segment_N = (jnp.arange(padded) >= N).astype(jnp.int32)
    segments = kernels.SegmentIds(q=segment_N, kv=segment_N)

    # The kernel does not scale. Scaling in float32 keeps one rounding where E is no power of 4.
    scaled_BNAE = (q_BNAE.astype(jnp.float32) / math.sqrt(E)).astype(q_BNAE.dtype)
    q_BANE, k_BANE, v_BANE = (
        _pad_tokens(x_BNAE, padded).swapaxes(1, 2) for x_BNAE in (scaled_BNAE, k_BNAE, v_BNAE)
    )
    out_BANE = jax.vmap(attend, in_axes=(0, 0, 0, None))(q_BANE, k_BANE, v_BANE, segments)
    return out_BANE.swapaxes(1, 2)[:, :N]


IMPLEMENTATIONS = {"plain": plain, "xla": xla, "cudnn": cudnn, "splash": splash}
OPAQUE = ("cudnn", "splash")


def _compute(implementation: str, causal: bool):
    function = IMPLEMENTATIONS[implementation]
    return functools.partial(function, causal=True) if causal else function


def choose(
    requested: str,
    *,
    shapes: list[tuple[int, int, int, int]],
    dtype,
    platform: str | None = None,
    causal: bool = False,
) -> Choice:
    """The implementation a run will use, and why.

    requested: "auto" tries those of the platform in order and takes the first that runs forward
    and backward on all shapes and agrees with `plain` in float32. A name is taken or refused.
    shapes: every (B, N, A, E) the run will meet, B images on one device.
    platform: cpu, gpu or tpu; None asks jax.
    Call it outside jit and outside `mesh.use`; every host does the same check on a device it owns.
    Raises ValueError if the requested implementation is unknown, fails or disagrees.
    """
    _check_name(requested, ["auto", *IMPLEMENTATIONS])
    platform = jax.default_backend() if platform is None else platform
    if platform not in ORDER:
        raise ValueError(f"platform={platform!r} is not one of {', '.join(ORDER)}.")
    names = ORDER[platform] if requested == "auto" else (requested,)

    reasons: list[str] = []
    for name in names:
        fault = find_fault(name, shapes=shapes, dtype=dtype, causal=causal)
        if fault is None:
            why = "first that works" if requested == "auto" else "requested"
            return Choice(name, [*reasons, f"attention: {name} chosen ({why} on {platform})"])
        reasons.append(f"attention: {name} rejected: {fault}")
    raise ValueError(
        f"model.attention={requested!r} cannot be used here. {' '.join(reasons)} "
        f"Choose among {', '.join(['auto', *(n for n in IMPLEMENTATIONS if n not in names)])}; "
        "auto takes the first that works."
    )


def find_fault(implementation: str, *, shapes, dtype, causal: bool = False) -> str | None:
    """What is wrong with an implementation on these shapes, in one line; None if nothing is."""
    if implementation == "plain":
        return None  # it is the reference, and plain jax.numpy
    for shape in dict.fromkeys(tuple(shape) for shape in shapes):
        where = f"on (B, N, A, E) = {shape} in {jnp.dtype(dtype).name}"
        try:
            defined = _compute("plain", causal)
            error, allowed = _compare(_compute(implementation, causal), defined, shape, dtype)
        except Exception as problem:  # noqa: BLE001 (a kernel may fail in any way; all are reported)
            lines = str(problem).splitlines() or [""]
            return f"{type(problem).__name__}: {lines[0][:200]} {where}"
        if not error <= allowed:  # so that NaN fails too
            return (
                f"differs from plain by {error:.1e} of the largest value {where}, not {allowed:.0e}"
            )
    return None


def _compare(function, defined, shape, dtype) -> tuple[float, float]:
    """(error, allowed error) of outputs and gradients, as shares of the largest true value.

    The batch repeats two images, so that the reference costs two images whatever B is.
    """
    B, *token_shape = shape
    rng = np.random.default_rng(0)
    pair = [rng.normal(size=(2, *token_shape)).astype(np.float32) for _ in range(4)]
    inputs = [jnp.asarray(x, dtype) for x in pair]
    wide = [x.astype(jnp.promote_types(dtype, jnp.float32)) for x in inputs]
    batch = [x[np.arange(B) % 2] for x in inputs]

    got = jax.jit(functools.partial(_with_gradients, function))(*batch)
    same_dtype = jax.jit(functools.partial(_with_gradients, defined))(*inputs)
    with jax.default_matmul_precision("highest"):
        want = jax.jit(functools.partial(_with_gradients, defined))(*wide)
    error = _difference(got, [x[np.arange(B) % 2] for x in want])
    # Where float32 products are rounded by default (TPU, TF32), plain itself shows how much.
    rounding = _difference(same_dtype, want)
    return error, max(TOLERANCE[jnp.dtype(dtype).name], 3 * rounding)


def _with_gradients(function, *inputs):
    *qkv, cotangent_BNAE = inputs
    out_BNAE, pull = jax.vjp(function, *qkv)
    return (out_BNAE, *pull(cotangent_BNAE))


def _difference(got, want) -> float:
    shares = [
        jnp.max(jnp.abs(a.astype(b.dtype) - b)) / jnp.max(jnp.abs(b))
        for a, b in zip(got, want, strict=True)
    ]
    return float(jnp.max(jnp.stack(shares)))  # NaN anywhere stays NaN


def _pad_tokens(x_BNAE, num_tokens: int):
    return jnp.pad(x_BNAE, ((0, 0), (0, num_tokens - x_BNAE.shape[1]), (0, 0), (0, 0)))


def _check_name(name: str, known) -> None:
    if name not in known:
        raise ValueError(f"model.attention={name!r} is not one of {', '.join(known)}.")

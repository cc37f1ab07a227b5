"""Every attention implementation against a loop a reader believes, and the choice among them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.ops import attention as module
from dinojax.ops.attention import attention, choose, find_fault
from dinojax.sharding import mesh


def arrays(shape, count=4, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(count)]


def reference(q_BNAE, k_BNAE, v_BNAE):
    out_BNAE = np.zeros_like(q_BNAE, dtype=np.float64)
    for b, n, a in np.ndindex(q_BNAE.shape[:3]):
        scores_N = k_BNAE[b, :, a] @ q_BNAE[b, n, a] / np.sqrt(q_BNAE.shape[-1])
        weights_N = np.exp(scores_N - scores_N.max())
        out_BNAE[b, n, a] = weights_N @ v_BNAE[b, :, a] / weights_N.sum()
    return out_BNAE


@pytest.fixture
def interpreted_splash(monkeypatch):
    splash = functools.partial(module.splash, interpret=True)
    monkeypatch.setitem(module.IMPLEMENTATIONS, "splash", splash)


def with_gradients(implementation, *, num_valid=None):
    def run(q, k, v, cotangent):
        function = functools.partial(attention, implementation=implementation, num_valid=num_valid)
        out, pull = jax.vjp(function, q, k, v)
        return (out, *pull(cotangent))

    return jax.jit(run)


def test_plain_matches_the_loop():
    q, k, v = arrays((2, 5, 3, 4), count=3)
    got = attention(q, k, v, implementation="plain")
    np.testing.assert_allclose(got, reference(q, k, v), rtol=1e-5, atol=1e-6)


def test_plain_keeps_float64():
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(x, jnp.float64) for x in arrays((1, 5, 2, 4), count=3))
        got = attention(q, k, v, implementation="plain")
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, reference(*map(np.asarray, (q, k, v))), rtol=1e-13)


def test_plain_softmax_of_bfloat16_is_in_float32():
    inputs = [jnp.zeros((1, 5, 2, 4), jnp.bfloat16)] * 3
    program = str(jax.make_jaxpr(functools.partial(attention, implementation="plain"))(*inputs))
    assert re.findall(r":(\w+)\[[\d,]*\] = exp ", program) == ["f32"]


# find_fault compares outputs and all three gradients with plain in float32.
@pytest.mark.parametrize("num_tokens,dtype", [(5, jnp.float32), (201, jnp.bfloat16)])
def test_xla_equals_plain_forward_and_backward(num_tokens, dtype):
    assert find_fault("xla", shapes=[(3, num_tokens, 2, 8)], dtype=dtype) is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("num_tokens", [5, 37, 197, 201])
def test_xla_equals_plain_at_all_lengths(num_tokens, dtype):
    assert find_fault("xla", shapes=[(3, num_tokens, 2, 8)], dtype=dtype) is None


@pytest.mark.usefixtures("interpreted_splash")
def test_splash_equals_plain_forward_and_backward():
    assert find_fault("splash", shapes=[(1, 5, 1, 8)], dtype=jnp.float32) is None


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted_splash")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("num_tokens", [37, 128, 201, 400, 513])
def test_splash_equals_plain_at_all_lengths(num_tokens, dtype):
    assert find_fault("splash", shapes=[(3, num_tokens, 2, 8)], dtype=dtype) is None


def check_padding_is_ignored(implementation, shape, num_valid):
    inputs = arrays(shape)
    dirty = [x.copy() for x in inputs]
    for x, garbage in zip(dirty, (np.nan, 1e30, np.inf, np.nan), strict=True):
        x[:, num_valid:] = garbage
    run = with_gradients(implementation, num_valid=num_valid)
    clean = run(*inputs)
    for got, want in zip(run(*dirty), clean, strict=True):
        np.testing.assert_array_equal(got, want)  # identical bits, gradients too
        np.testing.assert_array_equal(got[:, num_valid:], 0)
    cut = with_gradients("plain")(*(x[:, :num_valid] for x in inputs))
    for got, want in zip(clean, cut, strict=True):
        np.testing.assert_allclose(got[:, :num_valid], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["plain", "xla"])
def test_padded_tokens_have_no_influence_at_all(implementation):
    check_padding_is_ignored(implementation, (2, 8, 2, 4), num_valid=5)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted_splash")
def test_padded_tokens_have_no_influence_in_splash():
    check_padding_is_ignored("splash", (2, 8, 2, 4), num_valid=5)


@pytest.mark.parametrize("num_valid", [0, 9])
def test_num_valid_outside_the_tokens_is_refused(num_valid):
    q, k, v = arrays((1, 8, 1, 4), count=3)
    with pytest.raises(ValueError, match=f"num_valid={num_valid} is not within 1 to the 8 tokens"):
        attention(q, k, v, implementation="plain", num_valid=num_valid)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted_splash")
def test_splash_on_eight_devices_equals_one_and_stays_where_it_is():
    inputs = arrays((8, 5, 2, 4))
    want = with_gradients("plain")(*inputs)
    layout = mesh.make("fsdp")
    with mesh.use(layout):
        sharded = [jax.device_put(x, layout.sharding("image")) for x in inputs]
        compiled = with_gradients("splash").lower(*sharded).compile()
        got = compiled(*sharded)
    assert got[0].sharding.is_equivalent_to(layout.sharding("image"), 4)
    assert "all-gather" not in compiled.as_text()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_auto_on_cpu_is_the_definition():
    choice = choose("auto", shapes=[(2, 5, 2, 4)], dtype=jnp.float32)
    assert choice.implementation == "plain"
    assert choice.reasons == ["attention: plain chosen (first that works on cpu)"]


@pytest.mark.parametrize("platform,rejected", [("gpu", "cudnn"), ("tpu", "splash")])
def test_auto_falls_back_with_the_reason(platform, rejected):
    choice = choose("auto", shapes=[(2, 5, 2, 4)], dtype=jnp.bfloat16, platform=platform)
    assert choice.implementation == "xla"
    assert choice.reasons[0].startswith(f"attention: {rejected} rejected: ")
    assert "(B, N, A, E) = (2, 5, 2, 4) in bfloat16" in choice.reasons[0]


def test_a_wrong_kernel_is_rejected(monkeypatch):
    def unscaled(q, k, v):
        return module.plain(2 * q, k, v)

    monkeypatch.setitem(module.IMPLEMENTATIONS, "cudnn", unscaled)
    choice = choose("auto", shapes=[(2, 5, 2, 4)], dtype=jnp.bfloat16, platform="gpu")
    assert choice.implementation == "xla"
    assert choice.reasons[0].startswith("attention: cudnn rejected: differs from plain by ")


def test_a_kernel_wrong_in_its_gradient_only_is_rejected(monkeypatch):
    def no_gradient_of_keys(q, k, v):
        return module.plain(q, jax.lax.stop_gradient(k), v)

    monkeypatch.setitem(module.IMPLEMENTATIONS, "cudnn", no_gradient_of_keys)
    fault = find_fault("cudnn", shapes=[(2, 5, 2, 4)], dtype=jnp.float32)
    assert fault is not None and fault.startswith("differs from plain")


def test_a_kernel_that_gives_nan_is_rejected(monkeypatch):
    monkeypatch.setitem(module.IMPLEMENTATIONS, "cudnn", lambda q, k, v: module.plain(q, k, v / 0))
    fault = find_fault("cudnn", shapes=[(2, 5, 2, 4)], dtype=jnp.float32)
    assert fault is not None and fault.startswith("differs from plain by nan")


def test_a_kernel_that_fails_on_one_of_the_shapes_is_rejected(monkeypatch):
    def even_only(q, k, v):
        if q.shape[1] % 2:
            raise NotImplementedError(f"Unsupported sequence length {q.shape[1]}")
        return module.plain(q, k, v)

    monkeypatch.setitem(module.IMPLEMENTATIONS, "splash", even_only)
    fault = find_fault("splash", shapes=[(2, 6, 2, 4), (2, 5, 2, 4)], dtype=jnp.float32)
    assert fault is not None
    assert fault.startswith("NotImplementedError: Unsupported sequence length 5 on ")


def test_a_requested_kernel_that_cannot_run_is_an_error_with_the_choices():
    message = (
        "model.attention='cudnn' cannot be used here.*cudnn rejected: .*cuDNN.*"
        "Choose among auto, plain, xla, splash"
    )
    with pytest.raises(ValueError, match=message):
        choose("cudnn", shapes=[(2, 5, 2, 4)], dtype=jnp.bfloat16)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="'flash' is not one of auto, plain, xla, cudnn, splash"):
        choose("flash", shapes=[], dtype=jnp.float32)
    q, k, v = arrays((1, 5, 1, 4), count=3)
    with pytest.raises(ValueError, match="'auto' is not one of plain, xla, cudnn, splash"):
        attention(q, k, v, implementation="auto")
    with pytest.raises(ValueError, match="platform='rocm' is not one of gpu, tpu, cpu"):
        choose("auto", shapes=[], dtype=jnp.float32, platform="rocm")


def test_cudnn_pads_to_a_multiple_of_eight_and_says_the_lengths(monkeypatch):
    seen: dict = {}

    def record(q, k, v, **kwargs):
        seen.update(kwargs, shape=q.shape)
        return module.plain(q, k, v)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    out = module.cudnn(*arrays((2, 5, 1, 4), count=3))
    assert out.shape == (2, 5, 1, 4) and seen["shape"] == (2, 8, 1, 4)
    assert seen["key_value_seq_lengths"].tolist() == seen["query_seq_lengths"].tolist() == [5, 5]


@pytest.mark.parametrize("implementation", ["plain", "xla"])
def test_a_causal_token_sees_none_behind_it(implementation):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 5, 2, 4)), jnp.float32) for _ in range(3))
    got = attention(q, k, v, implementation=implementation, causal=True)
    for stop in range(1, 6):  # the last of a shorter sequence sees all of it
        shorter = attention(*(x[:, :stop] for x in (q, k, v)), implementation="plain")
        np.testing.assert_allclose(got[:, stop - 1], shorter[:, -1], atol=1e-6)


def test_a_causal_kernel_is_compared_with_the_causal_definition():
    shapes = [(2, 5, 2, 4)]
    assert module.find_fault("xla", shapes=shapes, dtype=jnp.float32, causal=True) is None

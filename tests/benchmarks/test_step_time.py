"""The benchmark of a step, whole with an attention whose products nobody sees."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

from benchmarks import step_time
from dinojax.ops import attention
from dinojax.plan.targets import replaced
from dinojax.sharding import mesh
from tests.support import small


@pytest.fixture
def hidden(monkeypatch):
    """Plain attention in place of cuDNN's, inside of a primitive of the same name."""
    primitive = Primitive("dot_product_attention_fwd_wrapper")
    primitive.def_impl(attention.plain)
    primitive.def_abstract_eval(lambda q, k, v: q)
    mlir.register_lowering(primitive, mlir.lower_fun(attention.plain, multiple_results=False))

    @jax.custom_vjp
    def attend(q, k, v):
        return primitive.bind(q, k, v)

    attend.defvjp(
        lambda *qkv: (attend(*qkv), qkv),
        lambda qkv, cotangent: jax.vjp(attention.plain, *qkv)[1](cotangent),
    )
    monkeypatch.setitem(attention.IMPLEMENTATIONS, "cudnn", attend)


@pytest.mark.usefixtures("hidden")
def test_flops_of_a_step_do_not_depend_on_its_attention(monkeypatch):
    monkeypatch.setattr(attention, "find_fault", lambda *_, **__: None)
    one = mesh.make("dp", 1)
    plain, fused = (
        step_time.step_flops(small.config(f"model.attention={name}", "mesh.devices=1"), one)
        for name in ("plain", "cudnn")
    )
    assert plain == fused > 0


@pytest.mark.slow
@pytest.mark.usefixtures("hidden")
def test_a_step_with_a_fused_attention_is_timed_and_counted(monkeypatch, capsys):
    own = ["batch_size=8", "model.attention=cudnn", "mesh.devices=1"]
    overrides = replaced(small.flat_smoke(), own)
    given = [word for override in overrides for word in ("--set", override)]
    monkeypatch.setattr("sys.argv", ["step_time", "--repeats", "1", *given])
    step_time.main()
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["gflop"] > 0 and row["equal"] is True and row["baseline"] > 0
    assert jnp.isfinite(row["value"])

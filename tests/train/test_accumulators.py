"""No sum over many elements has a running total of 16 bits, whatever the dtype of computation."""

import jax
import jax.numpy as jnp
import pytest

from dinojax.sharding import mesh
from dinojax.train import program
from tests.support import small
from tests.support.accumulators import LIMIT, STAGE_LIMIT, of_compiled, of_trace

HALF = "precision.compute=bfloat16"
# Between them every option of the ViT, of heads and losses, and both ways to accumulate.
VITS = {
    "plain": (),
    "gated": (
        *("model.ffn=swiglu_fused", "model.mask_k_bias=True", "model.untie_cls_norm=True"),
        *("model.untie_local_cls_norm=True", "model.norm=rmsnorm", "model.remat=dots"),
        *("dino_head.prototype_norm=weight_norm", "ibot_head.prototype_norm=unit"),
        *("gram.enabled=True", "gram.anchor=file", "crops.gram_size=40", "accumulate=2"),
        *("losses.centering=softmax", "rope.dtype=bfloat16"),
    ),
    "learned": (
        *("model.position=learned", "model.position_size=64", "rope.rescale=None"),
        *("model.ffn=swiglu", "model.layer_scale=None", "model.drop_path=0.0"),
        *("model.remat=full", "model.qkv_bias=False", "adapter.rank=2", "model.attention=xla"),
        *("gram.enabled=True", "gram.teacher=ema", "gram.per_image=False", "gram.tokens=unmasked"),
    ),
}
STRATEGIES = {"plain": "fsdp", "gated": "fsdp_tp", "learned": "hsdp"}


def vit(name, *overrides):
    config = small.config(HALF, f"mesh.strategy={STRATEGIES[name]}", *VITS[name], *overrides)
    return program.build(config, mesh.from_section(config.mesh))


def convnext(*overrides):
    return small.convnext(HALF, "mesh.strategy=dp", "model.drop_path=0.3", *overrides)


def traced(function, built, *inputs):
    with mesh.use(built.layout):
        return of_trace(jax.make_jaxpr(function)(*inputs).jaxpr)


@pytest.mark.parametrize("name", VITS)
def test_no_sum_of_a_step_is_traced_with_a_16_bit_total(name):
    built = vit(name)
    with mesh.use(built.layout):
        inputs = built.abstract_inputs()
    assert traced(built.step, built, *inputs) == []


def test_nor_of_a_convnext_and_its_teacher():
    built = convnext()
    with mesh.use(built.layout):
        inputs = built.abstract_inputs()
        theirs = built.teacher_forward.abstract_inputs()
    assert traced(built.step, built, *inputs) == []
    assert traced(built.teacher_forward.forward, built, *theirs) == []


def test_only_gradients_of_matrices_cross_devices_in_the_dtype_that_was_asked_for():
    built = vit("plain", "precision.reduce=bfloat16")
    with mesh.use(built.layout):
        found = traced(built.step, built, *built.abstract_inputs())
    assert len(found) == 6, found  # qkv, proj, fc1, fc2 and two heads' prototypes
    assert all(line.startswith("over devices: reduce_scatter") for line in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VITS, "convnext"])
def test_no_sum_of_a_compiled_step_has_a_16_bit_total(name):
    built = convnext() if name == "convnext" else vit(name)
    with mesh.use(built.layout):
        text = built.lower().compile().as_text()
    assert of_compiled(text) == []


def test_no_sum_of_an_evaluation_has_a_16_bit_total():
    built = vit("plain")
    backbone = built.step.objective.backbone

    def embed(params, images):
        found = backbone.apply({"params": params}, [images])[0]
        return found.cls, jnp.mean(found.patches.astype(jnp.float32), axis=1)

    with mesh.use(built.layout):
        params = built.abstract_state().ema["backbone"]
        side, channels = 4 * backbone.spec.patch_size, backbone.spec.channels
        images = jax.ShapeDtypeStruct((8, side, side, channels), jnp.float32)
        made = jax.jit(embed).trace(params, images)
    assert of_trace(made.jaxpr.jaxpr) == []
    assert of_compiled(made.lower().compile().as_text()) == []


def sums(kind):
    """A function of bfloat16 [LIMIT + 1, 3] whose sums have totals of its dtype."""
    number = LIMIT + 1

    def looped(x):
        total, _ = jax.lax.scan(lambda t, row: (t + row, None), jnp.zeros(3, x.dtype), x)
        return total

    def scattered(x):
        return jnp.zeros(3, x.dtype).at[jnp.zeros(number, jnp.int32)].add(x[:, 0])

    def broadcast(x):
        loss = lambda bias: jnp.sum(x * (x + bias[None]).astype(jnp.float32))  # noqa: E731
        return jax.grad(loss)(jnp.zeros(3, x.dtype))

    return {
        "sum": lambda x: jax.lax.reduce_sum(x, axes=(0,)),
        "running": lambda x: jax.lax.cumsum(x, axis=0),
        "loop": looped,
        "scatter": scattered,
        "broadcast": broadcast,
        "in a loop": lambda x: jax.lax.map(lambda y: jax.lax.reduce_sum(y, axes=(0,)), x[None]),
    }[kind]


@pytest.mark.parametrize("kind", ["sum", "running", "loop", "scatter", "broadcast", "in a loop"])
def test_every_kind_of_sum_is_found(kind):
    narrow = jax.ShapeDtypeStruct((LIMIT + 1, 3), jnp.bfloat16)
    wide = jax.ShapeDtypeStruct((LIMIT + 1, 3), jnp.float32)
    function = sums(kind)
    assert of_trace(jax.make_jaxpr(function)(narrow).jaxpr)
    assert of_trace(jax.make_jaxpr(function)(wide).jaxpr) == []


@pytest.mark.parametrize("kind", ["sum", "broadcast"])
def test_a_sum_is_found_in_a_program_compiled_for_the_cpu(kind):
    def text(dtype):
        rows = jax.ShapeDtypeStruct((1000, 3), dtype)
        return jax.jit(sums(kind)).lower(rows).compile().as_text()

    assert of_compiled(text(jnp.bfloat16))
    assert of_compiled(text(jnp.float32)) == []


def test_a_sum_is_found_in_a_compiled_program():
    lines = """
%add (a: bf16[], b: bf16[]) -> bf16[] {
  ROOT %c = bf16[] add(%a, %b)
}

ENTRY %main (x: bf16[65,3]) -> bf16[3] {
  %x = bf16[65,3]{1,0} parameter(0)
  %zero = bf16[] constant(0)
  %s = bf16[3]{0} reduce(%x, %zero), dimensions={0}, to_apply=%add
  ROOT %r = bf16[3]{0} all-reduce(%s), replica_groups={}, to_apply=%add
}
"""
    assert [line.split(":")[0] for line in of_compiled(lines)] == ["65 terms", "over devices"]
    assert len(of_compiled(lines.replace("65,", f"{STAGE_LIMIT},"))) == 1
    assert of_compiled(lines.replace("bf16", "f32")) == []
    assert of_compiled(lines.replace("add(%a", "maximum(%a")) == []

"""Every program of a run traces with every attention: no kernel is run, so no device is needed."""

import jax
import jax.numpy as jnp
import pytest

from dinojax.models.convnext import ConvNext
from dinojax.models.vit import Vit
from dinojax.ops import attention
from dinojax.sharding import mesh
from dinojax.train import program
from dinojax.train.program import Program
from dinojax.train.teacher_forward import TeacherForward
from tests.support import small

# What a kernel runs on, as jax calls it where it is lowered.
PLATFORMS = {"plain": "cpu", "xla": "cuda", "cudnn": "cuda", "splash": "tpu"}
KERNELS = {"cudnn": "dot_product_attention", "splash": "pallas_call"}  # primitives
# cuDNN has no float32.
COMBINATIONS = [
    (name, dtype)
    for name in attention.IMPLEMENTATIONS
    for dtype in ("float32", "bfloat16")
    if (name, dtype) != ("cudnn", "float32")
]
VIT = ("model.width=16", "model.depth=2", "model.drop_path=0.3", "rope.rescale=2.0")
# A ViT student of the same teacher as the ConvNeXt of small.py.
TAUGHT = ("model.name=vits", "model.patch_size=32", "model.num_heads=2", *VIT)


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def chosen(request, monkeypatch) -> tuple[str, str]:
    """An attention and a dtype, as if the hardware for them were there."""
    monkeypatch.setattr(attention, "find_fault", lambda *_, **__: None)
    with_cudnn(monkeypatch)
    return request.param


def with_cudnn(monkeypatch):
    """JAX asks the library for its version before it traces an attention of cuDNN."""
    kernels = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{kernels}.check_cudnn_version", lambda: 91000)


def overrides(name: str, dtype: str) -> list[str]:
    return [f"model.attention={name}", f"precision.compute={dtype}", "mesh.devices=1"]


def trace_training(built: Program):
    """What makes the first state of a program, and its step."""
    with mesh.use(built.layout):
        return jax.jit(built.step).trace(*built.abstract_inputs())


def trace_evaluation(built: Program):
    side, channels = built.eval_transform.crop_size, built.batch_shape[-1]
    images = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    with mesh.use(built.layout):
        return jax.jit(built.features).trace(built.abstract_state().ema["backbone"], images)


def trace_teacher_forward(teacher_forward: TeacherForward | None):
    assert teacher_forward is not None
    with mesh.use(teacher_forward.layout):
        return jax.jit(teacher_forward.forward).trace(*teacher_forward.abstract_inputs())


def check(traced, name: str) -> None:
    """The kernel is in the program."""
    assert name not in KERNELS or KERNELS[name] in str(traced.jaxpr)


def test_a_vit_trains_and_is_evaluated(chosen):
    built = program.build(small.config(*VIT, *overrides(*chosen)), mesh.make("dp", 1))
    check(trace_training(built), chosen[0])
    evaluation = trace_evaluation(built)
    check(evaluation, chosen[0])
    evaluation.lower(lowering_platforms=(PLATFORMS[chosen[0]],))


def test_a_vit_teaches_a_vit(chosen):
    built = small.convnext(*TAUGHT, *overrides(*chosen))
    assert isinstance(built.step.objective.backbone, Vit)
    check(trace_teacher_forward(built.teacher_forward), chosen[0])
    check(trace_training(built), chosen[0])


@pytest.mark.parametrize("chosen", [("splash", "float32"), ("cudnn", "bfloat16")], indirect=True)
def test_a_vit_teaches_a_convnext(chosen):
    built = small.convnext(*overrides(*chosen))
    assert isinstance(built.step.objective.backbone, ConvNext)
    check(trace_teacher_forward(built.teacher_forward), chosen[0])
    trace_training(built)
    trace_evaluation(built)


def test_an_attention_of_cudnn_is_refused_in_float32_before_anything_is_traced(monkeypatch):
    with_cudnn(monkeypatch)
    with pytest.raises(ValueError, match="model.attention='cudnn' cannot be used here.*float32"):
        program.build(small.config(*VIT, *overrides("cudnn", "float32")), mesh.make("dp", 1))

"""The closed form against the walk over the traced program, part by part and as a whole."""

import math

import jax
import jax.numpy as jnp
import pytest

from dinojax import config as configs
from dinojax.models import zoo
from dinojax.models.convnext import ConvNextSpec
from dinojax.ops.flops import count_flops, vit_flops
from dinojax.plan.formula import closed_form, forward, head_layers, summed, total, wire
from dinojax.sharding import mesh
from dinojax.train import program
from tests.support import small

ONE_DEVICE = ("mesh.devices=1", "mesh.strategy=dp", "model.attention=plain")


def built_on_one(recipe, *overrides, stage=None):
    config = configs.load(recipe, [*overrides, *ONE_DEVICE], stage=stage)
    return program.build(config, mesh.make("dp", 1))


def walked(built):
    with mesh.use(built.layout):
        own = count_flops(built.step, *built.abstract_inputs())
        if built.teacher_forward is None:
            return own
        return own + count_flops(
            built.teacher_forward.forward, *built.teacher_forward.abstract_inputs()
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe,stage,overrides",
    [
        ("vitl16_in1k", None, ("batch_size=64",)),
        ("vit7b16", "pretrain", ("batch_size=16", "model.remat=full")),
        ("adapt_vitl16", "heads", ("batch_size=64",)),
        ("vit7b16", "gram", ("batch_size=16", "losses.centering=softmax")),
    ],
)
def test_the_formula_is_within_a_hundredth_of_the_walk(recipe, stage, overrides):
    built = built_on_one(recipe, *overrides, stage=stage)
    parts = closed_form(built)
    assert total(parts, "hardware") == pytest.approx(walked(built), rel=0.01)
    assert total(parts, "model") <= total(parts, "hardware")


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        ("model.width=768", "model.depth=3"),
        ("model.name=vits", "model.patch_size=16", "crops.patch_size=32")
        + ("model.width=None", "model.depth=None"),
    ],
    ids=["convnext", "vit beside it"],
)
def test_the_formula_counts_students_that_see_other_sizes_than_their_teacher(own):
    sizes = ("crops.global_size=512", "crops.local_size=224", "data.box_size=512")
    row = ("mesh.devices=1", "model.remat=dots")
    built = small.convnext(*sizes, *own, *row, "batch_size=4")
    parts = closed_form(built)
    assert total(parts, "hardware") == pytest.approx(walked(built), rel=0.01)


def test_a_forward_pass_is_that_of_plan_and_of_a_traced_network():
    built = program.build(small.config(*ONE_DEVICE, "crops.global_size=64"), mesh.make("dp", 1))
    objective = built.step.objective
    spec = objective.backbone.spec
    images = jax.ShapeDtypeStruct((3, 64, 64, spec.channels), jnp.float32)
    student = params = built.abstract_state().student
    apply = lambda p, x: objective.backbone.apply({"params": p}, [x])  # noqa: E731
    patches = (64 // spec.patch_size) ** 2
    want = vit_flops(
        depth=spec.depth,
        width=spec.width,
        ffn_width=4 * spec.width,
        ffn_matrices=2,
        num_patches=patches,
        num_prefix=1 + spec.num_registers,
        patch_values=spec.patch_size**2 * spec.channels,
    )
    assert forward(spec, 64) == want
    assert count_flops(apply, params["backbone"], images) == 3 * want

    spec = ConvNextSpec(**zoo.CONVNEXTS["convnext_tiny"])
    net, pixels = zoo.module(spec), jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), [jnp.zeros((1, 32, 32, 3))]))
    assert count_flops(lambda p, x: net.apply(p, [x]), params, pixels) == forward(spec, 512)
    assert forward(spec, 512) == pytest.approx(46.5e9, rel=0.01), "the figure of the family"

    head = objective.dino_head
    tokens = jax.ShapeDtypeStruct((5, head.spec.inputs), jnp.float32)
    bottleneck = lambda p, x: head.apply({"params": p}, x, method=type(head).bottleneck)  # noqa: E731
    assert count_flops(bottleneck, student["dino_head"], tokens) == 5 * head_layers(head.spec)


def test_bytes_of_weights_follow_from_where_they_are_stored():
    """Two copies of weights over four devices each; sizes of parts are those of the state."""
    layout = mesh.make("hsdp")
    built = program.build(small.config("mesh.strategy=hsdp"), layout)
    width = built.step.objective.backbone.spec.dtype.itemsize
    parts, whole, passes = 0, 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(built.abstract_state().student):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if size == leaf.size:
            whole += size
            continue
        name = jax.tree_util.keystr(path)
        parts += size
        passes += size * (5 if "prototypes" in name else 3 if "blocks" in name else 2)
    assert wire(built) == pytest.approx(
        {
            "all-gather": passes * width * 3,
            "reduce-scatter": parts * width * 3,
            "all-reduce": parts * width + 2 * whole * 4 * 7 / 8,
        }
    )


@pytest.mark.parametrize("reduce,width", [("float32", 4), ("bfloat16", 2)])
def test_gradients_cross_devices_in_the_dtype_of_precision_reduce(reduce, width):
    """With dp: of matrices, which fsdp stores in parts; vectors are float32 always."""
    settings = ("precision.compute=bfloat16", f"precision.reduce={reduce}")
    stored = program.build(small.config("mesh.strategy=fsdp", *settings), mesh.make("fsdp"))
    size = 0
    for leaf in jax.tree.leaves(stored.abstract_state().student):
        matrix = math.prod(leaf.sharding.shard_shape(leaf.shape)) < leaf.size
        size += leaf.size * (width if matrix else 4)
    built = program.build(small.config("mesh.strategy=dp", *settings), mesh.make("dp"))
    found = wire(built)
    assert summed(built)[reduce] == found["all-reduce"]
    assert found == {"all-gather": 0, "reduce-scatter": 0, "all-reduce": 2 * size * 7 / 8}

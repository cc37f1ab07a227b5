"""Every recipe in configs/ resolves, passes the rules, and shrinks to two steps."""

import importlib
import math

import flax.linen as nn
import jax
import pytest

from dinojax import config
from dinojax.models.params import init_params
from dinojax.sharding import mesh
from dinojax.train import program
from tests.support.recipes import FOLDER, READ_BY_THE_RUN, RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves(name):
    loaded = config.load(FOLDER / f"{name}.py")
    assert all(not key.endswith(".") for key in loaded.unread())
    assert loaded == config.load(name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_shrinks_to_two_steps_of_small_arrays(name):
    for small in config.load_stages(name, smoke=True):
        assert small.num_steps == 2
        assert small.batch_size <= 16
        assert small.crops.global_size <= 32
        assert small.model.width <= 32 and small.model.depth == 2
        assert small.dino_head.prototypes <= 64 and small.ibot_head.prototypes <= 64


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_command_cost_and_score(name):
    header = importlib.import_module(f"dinojax.configs.{name}").__doc__
    assert all(word in header for word in ("Run: ", "Cost: ", "Score:"))
    assert f"configs/{name}.py" in header


@pytest.fixture(scope="module", params=RECIPES)
def built(request):
    """Name, config and program of a recipe at full size, from shapes alone."""
    loaded = config.load(request.param)
    layout = mesh.make(loaded.mesh.strategy, loaded.mesh.devices)
    with mesh.use(layout):
        return request.param, loaded, program.build(loaded, layout)


def test_no_recipe_changes_a_key_that_nothing_reads(built):
    name, loaded, _ = built
    assert [key for key in loaded.unread() if not key.startswith(READ_BY_THE_RUN)] == []


def num_params(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def dinov2_backbone(width, depth, swiglu, positions):
    """Parameters of a DINOv2 backbone with patches of 14 pixels and a fused SwiGLU."""
    patches, tokens = width * 3 * 14**2 + width, 2 * width + positions * width
    attention, ffn = 4 * width**2 + 4 * width, 3 * width * swiglu + 2 * swiglu + width
    return patches + tokens + depth * (6 * width + attention + ffn) + 2 * width


def dinov2_head(width, hidden, bottleneck, prototypes):
    """Parameters of three linear layers and of prototypes with a learned length."""
    layers = [(width, hidden), (hidden, hidden), (hidden, bottleneck)]
    return sum(a * b + b for a, b in layers) + bottleneck * prototypes + prototypes


def dinov2_counts(width, depth, swiglu):
    heads = (dinov2_head(width, 2048, bottleneck, 131_072) for bottleneck in (384, 256))
    return dinov2_backbone(width, depth, swiglu, 1 + (224 // 14) ** 2), *heads


# Parameters of backbone, DINO head and iBOT head, counted on the reference implementation; those of
# DINOv2 from the sizes in its configuration, by a form that gives the released ViT-g/14's count.
COUNTS = {
    "vitl16_in1k": (303_150_080, 23_597_312, 23_597_312),
    "vit7b16": (6_716_043_264, 239_092_224, 72_884_608),
    "vit7b16_sat": (6_716_043_264, 239_092_224, 72_884_608),
    "dinov2_vitg14": dinov2_counts(1536, 40, 4096),
    "dinov2_vitl14": dinov2_counts(1024, 24, 2736),
}


@pytest.fixture(scope="module")
def shapes(built):
    if built[1].text.enabled:
        pytest.skip("counted in tests/text/test_released.py")

    def init():
        params = init_params(built[2].step.objective, jax.random.key(0))
        return nn.meta.unbox(params)

    with mesh.use(built[2].layout):
        return jax.eval_shape(init)


def test_a_recipe_has_as_many_parameters_as_the_published_network(built, shapes):
    if built[0] not in COUNTS:
        pytest.skip("no published count")
    parts = ("backbone", "dino_head", "ibot_head")
    assert tuple(num_params(shapes[part]) for part in parts) == COUNTS[built[0]]


def test_the_form_behind_the_counts_of_dinov2_gives_that_of_the_released_model():
    assert dinov2_backbone(1536, 40, 4096, positions=1 + (518 // 14) ** 2) == 1_136_480_768


def test_the_dinov2_recipes_have_the_published_values():
    large, giant = config.load("dinov2_vitl14"), config.load("dinov2_vitg14")
    assert (large.num_steps, large.batch_size, large.crops.local_size) == (625_000, 3072, 98)
    assert large.schedules.lr.peak * 4 * math.sqrt(3072 / 1024) == pytest.approx(3.464e-4, rel=1e-3)
    assert (large.losses.centering, large.dino_head.prototype_norm) == ("sinkhorn", "weight_norm")
    different = {key for key, *_ in config.diff(large, giant)}
    assert different == {"group_size", "model.name", "model.remat"}


def test_the_satellite_recipe_differs_in_normalisation_and_lengths_alone():
    web, satellite = config.load("vit7b16"), config.load("vit7b16_sat")
    changed = {key: value for key, _, value in config.diff(web, satellite)}
    assert changed.pop("image.mean") == (0.430, 0.411, 0.296)
    assert changed.pop("image.std") == (0.213, 0.156, 0.143)
    assert changed == {
        "num_steps": 100_000,
        "schedules.lr.warmup": 10_000,
        "schedules.teacher_temperature.warmup": 10_000,
        "optim.freeze_last_layer": 500,
        "checkpoint.keep_every": 10_000,  # the anchor's step is one of these
    }
    steps = [stage.num_steps for stage in config.load_stages("vit7b16_sat")]
    assert steps == [100_000, 10_000, 8_000]
    pairs = zip(config.load_stages("vit7b16"), config.load_stages("vit7b16_sat"), strict=True)
    lengths = ("num_steps", "steps_before", "cosine", "warmup", "keep_every", "freeze_last_layer")
    lengths += ("anchor", "refresh_every", "refresh_from")
    _, gram, highres = [{key for key, *_ in config.diff(*pair)} for pair in pairs]
    normalisation = {"image.mean", "image.std"}
    assert {key for key in gram if not key.endswith(lengths)} == normalisation
    sizes = {f"crops.more_{name}" for name in ("rates", "global", "local", "gram", "box")}
    sizes |= {"data.box_size"}
    assert {key for key in highres if not key.endswith(lengths)} == normalisation | sizes


def test_the_imagenet_recipe_has_the_published_values():
    c = config.load("vitl16_in1k")
    assert (c.num_steps, c.batch_size, c.group_size) == (125_000, 2048, 64)
    patches = [(size // c.model.patch_size) ** 2 for size in (224, 96)]
    assert (c.crops.global_size, c.crops.local_size) == (224, 96)
    assert c.batch_size * (2 * patches[0] + c.crops.num_local * patches[1]) == 1_392_640
    assert (c.schedules.lr.warmup, c.schedules.teacher_temperature.warmup) == (12_500, 37_500)


def test_the_7b_recipe_has_the_published_values():
    c = config.load("vit7b16")
    assert (c.num_steps, c.batch_size, c.group_size) == (1_000_000, 4096, 16)
    patches = [(size // c.model.patch_size) ** 2 for size in (256, 112)]
    assert (c.crops.global_size, c.crops.local_size) == (256, 112)
    assert c.batch_size * (2 * patches[0] + c.crops.num_local * patches[1]) == 3_702_784
    heads = [(h.hidden, h.bottleneck, h.prototypes) for h in (c.dino_head, c.ibot_head)]
    assert heads == [(8192, 512, 262_144), (4096, 384, 98_304)]
    assert (c.schedules.lr.peak, c.schedules.lr.end) == (5e-5, 5e-5)


def test_the_stages_of_the_7b_recipe_have_the_published_values():
    _, gram, highres = config.load_stages("vit7b16")
    assert (gram.num_steps, gram.batch_size, gram.crops.gram_size) == (200_000, 4096, 512)
    assert (gram.gram.refresh_every, gram.gram.max_refreshes) == (10_000, 3)
    assert (highres.num_steps, highres.batch_size, highres.group_size) == (30_000, 2048, 8)
    assert sum(highres.crops.more_rates) == pytest.approx(0.7)
    layout = mesh.make("fsdp", 1)
    now = [program.build(c, layout).now for c in (gram, highres)]
    # Learning rates after scaling, weights of the Gram loss and of the local terms.
    for step, lr, gram_weight, local_weight in ((0, 2.4e-4, 0.0, 1.0), (1000, 2.4e-4, 2.0, 0.5)):
        values = now[0](step)
        assert values["lr"] == pytest.approx(lr) and values["momentum"] == pytest.approx(0.999)
        assert values["gram_weight"] == pytest.approx(gram_weight)
        assert values["local_weight"] == pytest.approx(local_weight)
    assert now[1](0)["lr"] == 0.0 and now[1](10_000)["lr"] == pytest.approx(7.0711e-5, rel=1e-4)
    assert now[1](9)["gram_weight"] == 1.5 and now[1](9)["local_weight"] == 0.5

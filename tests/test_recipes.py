"""Every recipe in configs/ resolves, passes the rules, and shrinks to two steps."""

import importlib
from pathlib import Path

import pytest

from dinojax import config

FOLDER = Path(__file__).parent.parent / "configs"
RECIPES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "base"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves(name):
    loaded = config.load(FOLDER / f"{name}.py")
    assert all(not key.endswith(".") for key in loaded.unread())
    assert loaded == config.load(name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_shrinks_to_two_steps_of_small_arrays(name):
    small = config.load(name, smoke=True)
    assert small.num_steps == 2
    assert small.batch_size <= 16
    assert small.crops.global_size <= 32
    assert small.model.width <= 32 and small.model.depth == 2
    assert small.dino_head.prototypes <= 64 and small.ibot_head.prototypes <= 64


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_command_cost_and_score(name):
    header = importlib.import_module(f"configs.{name}").__doc__
    assert all(word in header for word in ("Run: ", "Cost: ", "Score:"))
    assert f"configs/{name}.py" in header


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

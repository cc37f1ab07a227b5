"""Every recipe trains two steps of each of its stages, killed in the second stage and continued."""

import numpy as np
import pytest
from PIL import Image

from dinojax import config as configs
from dinojax.runs.scalars import read_metrics
from dinojax.train import finish, loop, trainer
from dinojax.train.records import Records
from tests.support import small
from tests.support.recipes import RECIPES
from tests.support.stopping import Stop, at, die

TRAINED = (
    *("vit7b16", "vitl16_in1k", "dinov2_vitl14", "adapt_vitl16_lora"),
    *("own_small", "adapt", "guided_fmow"),
)
ELSEWHERE = ("tiny", "tiny_stages", "adapt_tiny", "dinotxt_tiny", "dinotxt_vitl16")
# test_train.py, test_start.py, test_adapt.py, test_text.py
# The network and optimizer of vitl16_in1k, which is trained, in the stages of vit7b16.
LARGE = {
    "model.ffn",
    "model.drop_path",
    "optim.clip",
    "optim.beta2",
    "model.qkv_bias",
    "model.norm",
    "optim.layer_decay",
    "schedules.lr.peak",
    "schedules.lr.start",
    "model.name",
    "schedules.lr.end",
}
ONE_SIZE = {f"crops.more_{name}" for name in ("rates", "global", "local", "gram", "box")}
SMALL_CROPS = {
    *("crops.global_size", "crops.local_size", "data.box_size", "model.patch_size"),
    *("data.source", "knn.features", "knn.mosaics", "log.pictures"),
}
COLOURS = {"augment.jitter_rate", "augment.saturation", "augment.hue", "augment.grayscale_rate"}
FOUR_CHANNELS = {
    *COLOURS,
    *("augment.blur_rates", "augment.solarize_rate", "crops.local_area"),
    *("image.channels", "image.normalize", "knn.crop_size", "knn.resize_size"),
}
# Recipe -> one that is trained here, and the keys in which the two differ when shrunk.
ALIKE = {
    "vitl16": ("vit7b16", LARGE),
    "vits16": ("vitl16", {"model.name", "model.drop_path"}),
    "vitb16": ("vitl16", {"model.name", "model.drop_path"}),
    "vit7b16_sat": ("vit7b16", {"image.mean", "image.std"} | ONE_SIZE),
    "adapt_vitl16": ("adapt_vitl16_lora", {"gram.enabled", "gram.anchor", "adapter.rank"} | LARGE),
    **{f"adapt_vit{size}16": ("adapt_vitl16", {"model.name"}) for size in "sb"},
    "dinov2_vitg14": ("dinov2_vitl14", {"model.name", "group_size", "model.remat"}),
    # test_scenes_train.py trains it on scenes.
    "adapt_satellite": ("adapt", {"data.source", "data.tile_size", "image.mean", "image.std"}),
    # smoke() leaves its guides out, for want of metadata; test_guidance.py trains with guides.
    "guided_tiny": ("own_small", SMALL_CROPS),
    "guided_hpa": ("guided_fmow", FOUR_CHANNELS),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(24):
        pixels = rng.integers(0, 256, (70, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_two_steps_of_each_stage(name, images, tmp_path, monkeypatch):
    compiled = {}

    def compile_once(built):
        key = (built.batch_shape, built.step.view_spec, built.step.objective)
        if key not in compiled:
            compiled[key] = built.lower().compile(small.FAST)
        return compiled[key]

    monkeypatch.setattr(trainer, "compile_step", compile_once)
    monkeypatch.setattr(finish, "finish", lambda *args, **options: None)
    settings = [f"data.path={images}", "mesh.devices=1", "log.pictures=False", "log.every=1"]
    settings += ["augment.blur_rates=0.0,0.0,0.0"]  # compiles longest and is tested elsewhere
    stages = configs.load_stages(name, [*settings, "batch_size=4", "group_size=2"], smoke=True)
    if len(stages) > 1:
        with at(monkeypatch, (Records, "add"), 4, die), pytest.raises(Stop):
            loop.train(stages, tmp_path / "run")
    state = loop.train(stages, tmp_path / "run")
    assert state.step == 2
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2] * len(stages)
    assert all(np.isfinite(row["total"]) for row in rows)
    assert ("gram" in rows[-1]) == stages[-1].gram.enabled


@pytest.mark.parametrize("name", ALIKE)
def test_a_recipe_that_is_not_trained_shrinks_to_one_that_is(name):
    other, keys = ALIKE[name]
    pairs = zip(
        configs.load_stages(name, smoke=True), configs.load_stages(other, smoke=True), strict=False
    )
    for one, two in pairs:
        assert {key for key, *_ in configs.diff(one, two)} <= keys


def test_no_recipe_is_left_out():
    assert set(RECIPES) == {*TRAINED, *ELSEWHERE, *ALIKE}

"""Recipes that compute their values: the published points, what --set changes, epochs."""

import math

import pytest

from dinojax import config
from dinojax.config import computed, formulas
from dinojax.config.formulas import Facts


def counting(num_images, **more):
    """What `measure` would give of so many images."""
    return lambda values: Facts(num_images, "counted", **more)


def own(num_images, *overrides, **more):
    return config.load("own_small", overrides, measure=counting(num_images, **more))


# Images -> batch, prototypes, first momentum of the ema, images drawn: small_data's table of cases.
CASES = {
    10_000: (128, 1024, 0.9956, 2_000_000),
    30_000: (256, 4096, 0.9970, 6_000_000),
    100_000: (256, 8192, 0.9990, 20_000_000),
}


@pytest.mark.parametrize("images", CASES)
def test_the_formulas_give_the_published_points(images):
    found = own(images)
    batch, prototypes, momentum, drawn = CASES[images]
    assert found.batch_size == batch
    assert found.dino_head.prototypes == found.ibot_head.prototypes == prototypes
    assert found.schedules.momentum.start == pytest.approx(momentum, abs=1e-4)
    assert found.num_steps * batch == pytest.approx(drawn, rel=0.01)
    assert found.schedules.lr.peak == pytest.approx(5e-4 * math.sqrt(batch / 256))
    assert found.losses.centering == "sinkhorn"


def test_every_computed_value_has_a_reason_and_what_is_set_goes_into_the_rest():
    found = own(10_000, "batch_size=64")
    told = computed.reasons(found.sources)
    assert {"num_steps", "schedules.lr.peak", "dino_head.prototypes"} < told.keys()
    assert all(told.values()) and "batch_size" not in told
    assert found.schedules.lr.peak == pytest.approx(5e-4 * 0.5)
    assert found.losses.centering == "softmax", "128 rows are too few for Sinkhorn"
    assert found.num_steps == 2_000_000 // 64


def test_a_trial_needs_one_key_and_keeps_the_shares_of_schedules():
    whole, trial = own(10_000), own(10_000, "epochs=2")
    assert trial.num_steps == round(2 * 10_000 / 128)
    for name, share in (("lr", 0.1), ("teacher_temperature", 0.3)):
        for found in (whole, trial):
            warmup = getattr(found.schedules, name).warmup
            assert warmup == pytest.approx(share * found.num_steps, abs=1)
    with pytest.raises(config.ConfigError, match="epochs and num_steps are both set"):
        own(10_000, "epochs=2", "num_steps=7")


def test_epochs_work_in_a_recipe_that_computes_nothing():
    found = config.load("vitl16_in1k", ["epochs=1"], measure=counting(204_800))
    assert found.num_steps == 100
    whole = config.load("vitl16_in1k")
    for name in ("lr", "teacher_temperature"):
        kept = getattr(found.schedules, name).warmup / found.num_steps
        assert kept == pytest.approx(
            getattr(whole.schedules, name).warmup / whole.num_steps, abs=0.01
        )


def test_few_bytes_make_micro_batches_and_more_devices_change_nothing_else():
    roomy, tight = own(30_000, memory=1e12), own(30_000, memory=6e9)
    assert roomy.accumulate == 1 and tight.accumulate > 1
    several = own(30_000, memory=6e9, devices=8)
    assert several.accumulate < tight.accumulate
    different = {key for key, _, _ in config.diff(roomy, several)}
    assert different <= {"accumulate"}


def test_small_pictures_get_larger_local_crops():
    assert own(10_000, side=500.0).crops.local_area == (0.05, 0.32)
    assert own(10_000, side=100.0).crops.local_area[0] == pytest.approx(0.48**2, abs=1e-3)


def test_an_adaptation_takes_its_network_from_the_weights_and_adapters_learn_faster():
    start = {"model.width": 384, "model.depth": 12, "model.num_heads": 6, "model.patch_size": 14}
    measure = counting(20_000, start=start)
    full = config.load_stages("adapt", measure=measure)
    assert [stage.stage for stage in full] == ["heads", "adapt"]
    for stage in full:
        assert (stage.model.width, stage.crops.global_size, stage.crops.local_size) == (
            384,
            224,
            98,
        )
    assert full[0].until.left_chance and full[1].knn.alarm_stops
    assert full[1].schedules.lr.peak == pytest.approx(5e-5 * 4 * math.sqrt(128 / 1024))
    lora = config.load_stages("adapt", ["adapt:adapter.rank=8"], measure=measure)
    assert lora[1].schedules.lr.peak == pytest.approx(3 * full[1].schedules.lr.peak)


def test_what_cannot_work_is_refused_and_what_seldom_does_is_told():
    with pytest.raises(config.ConfigError, match="spreads 32 rows"):
        own(10_000, "batch_size=16", "losses.centering=sinkhorn")
    values = own(2000, "batch_size=256", "dino_head.prototypes=4096").values()
    told = " ".join(formulas.warnings(values, Facts(2000, "counted")))
    assert "fewer than four for each" in told and "schedules get coarse" in told
    slow = own(10_000, "schedules.momentum.start=0.9999").values()
    assert "teacher stays" in " ".join(formulas.warnings(slow, Facts(10_000, "counted")))


def test_a_half_life_is_what_it_says():
    momentum, batch = 0.9956, 128
    steps = formulas.half_life(momentum, batch) / batch
    assert momentum**steps == pytest.approx(0.5, rel=0.01)

"""Schedules of train/optim.py: printed values of the reference, slow arrays, edges, errors."""

import numpy as np
import pytest

from dinojax.configs.base import get_config, schedule
from dinojax.train import optim


def section(**changes):
    c = get_config().schedules
    for name, value in changes.items():
        c[name] = value
    return c


def build_schedules(spec, num_steps=100, batch_size=1024, freeze=0, scaling="none"):
    return optim.schedules(
        spec,
        num_steps=num_steps,
        batch_size=batch_size,
        freeze_last_layer=freeze,
        lr_scaling=scaling,
    )


def short(**changes):
    """Schedules whose parts fit into a few steps."""
    flat = schedule(1.0, 1.0, 1.0)
    return section(**{name: flat for name in ("lr", "teacher_temperature")} | changes)


def test_the_imagenet_recipe_gives_the_reference_values():
    c = get_config()
    now = build_schedules(c.schedules, c.num_steps, 2048, c.optim.freeze_last_layer, "sqrt_1024")
    assert now(0)["lr"] == 0.0
    assert now(1)["lr"] == pytest.approx(4.526e-7, rel=1e-4)
    assert now(12_499)["lr"] == now(12_500)["lr"] == pytest.approx(5.65685e-3, rel=1e-5)
    assert now(12_501)["lr"] < now(12_500)["lr"]
    assert now(62_500)["weight_decay"] == pytest.approx(0.22)
    assert now(62_500)["momentum"] == pytest.approx(0.996)
    assert now(1)["teacher_temperature"] == pytest.approx(0.0400008, abs=1e-9)
    assert now(37_499)["teacher_temperature"] == now(124_999)["teacher_temperature"] == 0.07
    assert now(1249)["last_layer_lr"] == 0.0 < now(1249)["lr"]
    assert now(1250)["last_layer_lr"] == now(1250)["lr"]
    assert now(124_999)["lr"] > 1e-6 == now(125_000)["lr"]


def test_the_7b_recipe_gives_the_reference_values():
    lr = schedule(0.0, 5e-5, 5e-5, warmup=100_000)
    now = build_schedules(section(version=2, lr=lr), 1_000_000, 4096, 5000, "sqrt_1024")
    assert now(1)["lr"] == pytest.approx(4e-9)
    assert now(100_000)["lr"] == now(999_999)["lr"] == pytest.approx(4e-4)


@pytest.mark.parametrize("version", [1, 2])
def test_a_schedule_equals_slow_arrays(version):
    start, peak, end, warmup, cosine, total = 0.1, 2.0, 0.5, 7, 11, 24
    last = version == 2  # whether the cosine includes its last point, the warm-up its own
    rise = np.linspace(start, peak, warmup, endpoint=not last)
    turn = np.pi * np.linspace(0, 1, cosine, endpoint=last)
    fall = end + 0.5 * (peak - end) * (1 + np.cos(turn))
    expected = np.concatenate([rise, fall, np.full(total - warmup - cosine, end)])
    spec = short(version=version, momentum=schedule(start, peak, end, warmup, cosine))
    now = build_schedules(spec, total)
    np.testing.assert_allclose([now(i)["momentum"] for i in range(total)], expected, rtol=1e-12)


def test_a_cut_cosine_is_stretched_to_its_end():
    lr = schedule(0.0, 1e-3, 1e-6, warmup=100)
    now = build_schedules(short(lr=lr, truncate_extra=0.25), 1000)
    expected = {100: 1e-3, 300: 0.0009159263065373881, 998: 1.9098524661100366e-06, 999: 1e-6}
    np.testing.assert_allclose([now(i)["lr"] for i in expected], list(expected.values()), rtol=1e-9)


def test_loss_weights_follow_version_2_in_both_versions():
    ramp = schedule(0.0, 0.0, 2.0, warmup=10, cosine=5)
    for version in (1, 2):
        now = build_schedules(short(version=version, gram_weight=ramp, local_weight=ramp), 20)
        values = now(14)
        assert values["gram_weight"] == values["local_weight"] == 2.0
        assert now(10)["gram_weight"] == 0.0


def test_a_cosine_of_no_or_one_step_is_legal():
    for cosine in (0, 1):
        spec = short(version=2, momentum=schedule(0.3, 0.3, 0.9, 0, cosine))
        now = build_schedules(spec, 4)
        assert now(cosine)["momentum"] == 0.9
        assert now(0)["momentum"] == pytest.approx(0.9 if cosine == 0 else 0.3)


@pytest.mark.parametrize(
    "scaling, factor", [("sqrt_1024", 8.0), ("linear_256", 16.0), ("none", 1.0)]
)
def test_scaling_multiplies_the_peak_and_in_version_2_the_end(scaling, factor):
    lr = schedule(0.5, 1.0, 0.25, warmup=10, cosine=10)
    for version, end in ((1, 0.25), (2, 0.25 * factor)):
        now = build_schedules(short(version=version, lr=lr), 30, 4096, scaling=scaling)
        assert now(0)["lr"] == 0.5 and now(10)["lr"] == factor and now(25)["lr"] == end


@pytest.mark.parametrize(
    "spec, arguments, message",
    [
        ({}, {"num_steps": 36_000}, r"schedules.teacher_temperature: warmup=37500 .* num_steps=36"),
        ({"momentum": schedule(0, 0, 1, 90_000, 50_000)}, {}, "schedules.momentum: .*cosine=50000"),
        ({"version": 3}, {}, "schedules.version=3 is not 1 or 2"),
        ({}, {"scaling": "sqrt"}, "optim.lr_scaling='sqrt' is not one of sqrt_1024, linear_256"),
        ({"version": 2, "truncate_extra": 0.1}, {}, "schedules.truncate_extra=0.1"),
    ],
)
def test_schedule_errors_name_the_key(spec, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_schedules(section(**spec), **{"num_steps": 125_000, **arguments})

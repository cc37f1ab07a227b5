"""Names of machines, and what is refused."""

import configparser
import math
from pathlib import Path

import pytest

from dinojax.plan import compilers, names, targets
from dinojax.plan.targets import CARDS, CHIPS, GIB, parse


@pytest.mark.parametrize(
    "name,platform,devices,gib",
    [
        ("v5p:4x8x8", "tpu", 256, 95.74),
        ("v6e:16x16", "tpu", 256, 31.25),
        ("tpu7x:4x4x8", "tpu", 256, 94.75),
        ("h100:32x8", "gpu", 256, 79.1),
        ("b200:1x8", "gpu", 8, 178.4),
        ("a100:2x8", "gpu", 16, 79.3),
        ("l40s:1x4", "gpu", 4, 44.4),
        ("rtx4090:1x2", "gpu", 2, 23.5),
        ("cpu:8", "cpu", 8, math.inf),
    ],
)
def test_a_target_knows_its_devices(name, platform, devices, gib):
    target = parse(name)
    assert (target.chip.platform, target.num_devices) == (platform, devices)
    assert target.chip.memory / GIB == pytest.approx(gib, rel=1e-3)


@pytest.mark.parametrize(
    "name,message",
    [
        ("mi300:8", "'mi300' is not one of v5e, v5p, v6e, tpu7x, h100, h200, b200, a100, l40s, r"),
        ("a100-40gb:8", "'a100-40gb' is not one of"),
        ("v4-8", "'v4-8' is not one of"),
        ("tpu7x-64", "'tpu7x-64' is not one of"),
        ("", "'' is not one of"),
        ("v5p-100", "no slice has 100 TensorCores, two per chip; slices: v5p-8, v5p-16"),
        ("v5e-7", "no slice has 7 chips; slices: v5e-1, v5e-4"),
        ("h100:12", "12 GPUs do not fill machines of 8; give machines x GPUs, such as h100:3x4"),
        ("rtx4090:2x4", "rtx4090 is known in one machine alone, such as rtx4090:1x8"),
        ("h100:8x", "machines x GPUs, such as h100:32x8"),
        ("v5p:99999999x1x1", "up to 131,072 devices"),
        ("v5p:256", "after v5p: come chips along each side of the torus, such as v5p:4x8x8"),
        ("v6e:4x4x4", "such as v6e:16x16"),
        ("cpu:0", "devices, such as cpu:8"),
        ("cpu", "devices, such as cpu:8"),
    ],
)
def test_what_is_no_target_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("v5e-64", "v5e:8x8"),
        ("v5litepod-64", "v5e:8x8"),
        ("v6e-256", "v6e:16x16"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-128", "v5p:4x4x4"),
        ("a100:8", "a100:1x8"),
        ("h100x8", "h100:1x8"),
        ("8xH100", "h100:1x8"),
        ("h100:256", "h100:32x8"),
        ("A100-80GB:16", "a100:2x8"),
        ("l40s", "l40s:1x1"),
        ("RTX 4090", "rtx4090:1x1"),
        ("v5p:4x8x8", "v5p:4x8x8"),
        ("cpu:8", "cpu:8"),
    ],
)
def test_targets_are_taken_as_people_write_them(written, name):
    assert parse(written).name == name and parse(name).name == name


def test_a_slice_has_the_chips_that_its_name_counts():
    for kind, slices in names.SLICES.items():
        for number in slices:
            cores = 2 if kind == "v5p" else 1
            assert parse(f"{kind}-{number}").num_devices * cores == number


def test_the_last_of_two_overrides_of_a_key_stays():
    found = targets.replaced(["a=1", "b = 2"], ["b=3", "c=4"])
    assert found == ["a=1", "b=3", "c=4"]


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setitem(compilers.NEEDS, "tpu", ("no_such_module", "none"))
    with pytest.raises(ModuleNotFoundError, match="v5e:4x4 needs the compiler in no_such_module"):
        compilers.check_compiler(parse("v5e:4x4"))
    monkeypatch.setitem(compilers.NEEDS, "gpu", ("no_such_module.inner", "none"))
    with pytest.raises(ModuleNotFoundError, match="without the hardware: pip install 'dinojax.pl"):
        compilers.check_compiler(parse("h100:1x8"))
    compilers.check_compiler(parse("cpu:8"))


@pytest.mark.parametrize(
    ("target", "jax", "found", "told"),
    [
        ("v5e:4x4", "0.10.2", "0.0.42.1", None),
        ("v5e:4x4", "0.12.0.1", "0.0.50", None),
        ("v5e:4x4", "0.12.0.1", "0.0.42.1", r"libtpu 0.0.42.1 does not go .* \(libtpu 0.0.50 does"),
        ("v5e:4x4", "0.11.0", "0.0.45", "none here is known to"),
        ("h100:1x8", "0.10.2", "0.10.2", None),
        ("h100:1x8", "0.12.0.1", "0.10.2", r"jax 0.12.0.1 \(jax-cuda12-plugin 0.12.0.1 does"),
    ],
)
def test_a_compiler_of_another_jax_is_refused(monkeypatch, target, jax, found, told):
    versions = {"jax": jax, "libtpu": found, "jax-cuda12-plugin": found}
    monkeypatch.setattr(compilers.importlib.metadata, "version", versions.get)
    monkeypatch.setattr(compilers.importlib.util, "find_spec", lambda name: name)
    if told is None:
        compilers.check_compiler(parse(target))
        return
    with pytest.raises(ModuleNotFoundError, match=told) as refused:
        compilers.check_compiler(parse(target))
    assert "pip install 'dinojax[plan]'" in str(refused.value)


def test_the_extra_has_the_compilers_of_its_jax():
    """setup.cfg, for the Pythons of both."""
    extra = configparser.ConfigParser()
    extra.read(Path(__file__).parent.parent.parent / "setup.cfg")
    rows = extra["options.extras_require"]["plan"].split("\n")
    for mark in ('python_version < "3.12"', 'python_version >= "3.12"'):
        found = [row.partition(";")[0] for row in rows if row.endswith(mark)]
        versions = dict(row.strip().split("==") for row in found)
        assert versions.keys() == {"jax", "libtpu", "jax-cuda12-plugin"}
        assert versions["jax"] == versions["jax-cuda12-plugin"]
        assert versions["libtpu"] == compilers.LIBTPU[versions["jax"]] + "*"


def test_a_process_for_cpus_sees_as_many(monkeypatch):
    flags = "--xla_foo=1 --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    found = targets.environment(parse("cpu:3"))
    assert found["XLA_FLAGS"] == "--xla_foo=1  --xla_force_host_platform_device_count=3"
    assert "XLA_FLAGS" not in targets.environment(parse("h100:1x8"))


def test_every_gpu_has_a_card():
    assert {name for name, chip in CHIPS.items() if chip.platform == "gpu"} == set(CARDS)

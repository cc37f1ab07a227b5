"""The share of a GPU's memory: set for JAX, told at the start, and what a plan must fit in."""

import logging
import os
from types import SimpleNamespace

import jax
import pytest

from dinojax.cli import main
from dinojax.distributed.process_group import ProcessGroup
from dinojax.plan import compile, report, step_model, targets
from dinojax.plan.targets import GIB
from dinojax.sharding import gpu_memory
from dinojax.train import preflight
from tests.support.planned import FOUND

CURRENT, OLD = gpu_memory.NAMES


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in gpu_memory.NAMES:
        monkeypatch.delenv(name, raising=False)


def test_every_command_sets_the_share_before_it_runs(monkeypatch):
    seen = []
    monkeypatch.setattr(main, "_program", lambda name: lambda *_: seen.append(os.environ[CURRENT]))
    assert main.main(["doctor", "runs/none"]) == 0
    assert seen == ["0.9"]


@pytest.mark.parametrize("name", gpu_memory.NAMES)
def test_a_share_of_the_users_stays(name):
    environment = {name: "0.95"}
    gpu_memory.set_share(environment)
    assert environment == {name: "0.95"} and gpu_memory.share(environment) == 0.95


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({CURRENT: "0.9", OLD: "0.8"}, f"{CURRENT} and {OLD} are both set; unset the second"),
        ({OLD: "most"}, f"{OLD}='most' is no share of a GPU's memory; set it to a number"),
        ({CURRENT: "0"}, f"{CURRENT}='0' is no share"),
        ({CURRENT: "nan"}, f"{CURRENT}='nan' is no share"),
    ],
)
def test_what_jax_would_fail_at_is_refused(environment, message, monkeypatch, capsys):
    with pytest.raises(ValueError, match=message):
        gpu_memory.set_share(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main.main(["doctor", "runs/none"]) == 2
    assert "dinojax: error: " in capsys.readouterr().err


def fits(peak_gib: float, target: str) -> bool:
    found = {"memory": {"peak": peak_gib * GIB}}
    return compile.ending(found, targets.parse(target), 0.0)["fits"]


def test_a_step_must_fit_in_the_share_of_a_gpu(monkeypatch):
    """A card of 79.1 GiB; the whole of what a TPU's compiler allows."""
    assert fits(71.1, "h100:1x1") and not fits(71.3, "h100:1x1")
    assert fits(95.7, "v5p:2x2x2") and not fits(95.8, "v5p:2x2x2") and fits(1e6, "cpu:8")
    monkeypatch.setenv(OLD, "0.75")
    assert fits(59.3, "h100:1x1") and not fits(59.4, "h100:1x1")
    monkeypatch.setenv(OLD, "0.95")
    assert fits(75.1, "h100:1x1")


def test_a_plan_says_what_its_step_must_fit_in():
    found = {**FOUND, "target": "h100:1x8", "fits": False, "memory": {"peak": 75 * GIB}}
    plan = step_model.complete(found)
    text = report.summary([plan])
    assert "| 75.00 | 71.2 | no |" in text
    assert f"of: the 90% of a GPU that JAX takes ({CURRENT})." in text
    wanted = f"does not fit in the 71.198 GiB of a device, 90% of it, that JAX takes ({CURRENT})"
    assert wanted in report.details(plan).splitlines()
    assert (
        "fits in 95.740 GiB of a device" in report.details(step_model.complete(FOUND)).splitlines()
    )
    assert "that JAX takes" not in report.summary([step_model.complete(FOUND)])


def test_the_compiler_of_a_plan_knows_the_whole_card():
    memory = targets.CHIPS["h100"].memory
    assert f"device_memory_size: {memory}" in targets._card(targets.parse("h100:1x1"))


def test_a_run_says_what_jax_takes(monkeypatch, caplog):
    limit = {"bytes_limit": int(71.2 * GIB)}
    card = SimpleNamespace(device_kind="H100", platform="gpu", memory_stats=lambda: limit)
    monkeypatch.setattr(jax, "local_devices", lambda: [card] * 8)
    shares = {"0.9": f"90% of each GPU's memory for arrays ({CURRENT})"}
    shares[""] = f"its own share of each GPU's memory: {CURRENT} is not set"
    for value, told in shares.items():
        monkeypatch.setenv(CURRENT, value)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            preflight.check_devices(ProcessGroup(), [])
        assert "devices 0 to 7, 8 x H100 (gpu), 71.2 GiB each" in caplog.text
        assert f"JAX takes {told}" in caplog.text

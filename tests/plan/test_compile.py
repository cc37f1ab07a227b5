"""A plan from the recipe to the compiler, and against the committed one."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import sharding
from dinojax.plan import compile, compiler_output, targets
from dinojax.sharding import mesh

BASELINES = Path(__file__).parent.parent.parent / "benchmarks" / "baselines"


def row(target: str, strategy: str, table: str = "sharding") -> dict:
    """Of a committed table."""
    rows = json.loads((BASELINES / f"{table}.json").read_text())
    (found,) = [row for row in rows if (row["target"], row["strategy"]) == (target, strategy)]
    return found


@pytest.fixture(scope="module")
def fsdp():
    return compile.plan(recipe="tiny", target="cpu:8", overrides=row("cpu:8", "fsdp")["overrides"])


@pytest.mark.slow
def test_a_plan_counts_state_memory_flops_and_bytes(fsdp):
    assert fsdp["mesh"] == {"replica": 1, "fsdp": 8, "tensor": 1}
    assert fsdp["state"]["optimizer"] == 2 * fsdp["state"]["student"] + 4, "moments and a count"
    state = sum(fsdp["state"].values()) + fsdp["batch_bytes"]
    assert state <= fsdp["memory"]["argument"] < 1.05 * state + 4096
    assert fsdp["memory"]["peak"] > fsdp["memory"]["argument"]
    assert {one["kind"] for one in fsdp["collectives"]} >= {"all-gather", "all-reduce"}
    assert fsdp["flops"] > 0 and fsdp["fits"]


@pytest.mark.slow
def test_committed_plans_still_hold(fsdp):
    """Bytes, FLOPs and peak within 2 %, by the same release of the compiler."""
    before = row("cpu:8", "fsdp")
    if before["versions"]["jax"] != fsdp["versions"]["jax"]:
        pytest.skip(f"committed with jax {before['versions']['jax']}; compilers differ")
    assert sharding.differences(fsdp, before) == []


@pytest.mark.slow
def test_committed_plans_of_more_devices_still_hold(monkeypatch):
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):
        monkeypatch.delenv(name)  # tests compile with other code than runs (conftest.py)
    before = row("cpu:16", "hsdp", "scaling")
    now = sharding.again(before)
    assert now["replicated"] == [], "an array that the partitioner cannot move as it should"
    if before["versions"]["jax"] != now["versions"]["jax"]:
        pytest.skip(f"committed with jax {before['versions']['jax']}; compilers differ")
    assert sharding.differences(now, before) == []


def test_only_too_little_memory_is_a_result_and_not_an_error():
    """In the words of libtpu 0.0.42 for the 7B recipe with mesh.strategy=dp on v5p:4x8x8."""
    words = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    words += "temporaries (149.43G) exceeds available HBM (95.74G)."
    assert compiler_output._needed(RuntimeError(words)) == "149.43G exceeds 95.74G"
    assert (
        compiler_output._needed(RuntimeError("RESOURCE_EXHAUSTED: no room"))
        == "RESOURCE_EXHAUSTED: no room"
    )
    with pytest.raises(RuntimeError, match="no such option"):
        compiler_output._needed(RuntimeError("no such option"))


def test_a_change_of_bytes_is_told_in_words():
    measures = {"flops": 100, "peak": 100, "wire all-gather": 50}
    before = {"recipe": "tiny", "target": "cpu:8", "strategy": "fsdp", "measures": measures}
    sent = [{"kind": "all-reduce", "wire": 7}]
    now = {"flops": 101, "memory": {"peak": 103}, "collectives": sent}
    told = sharding.differences(now, before)
    assert len(told) == 3
    assert told[0] == "tiny cpu:8 fsdp: peak was 100, is 103"
    assert "wire all-gather was 50, is 0" in told[1] and "wire all-reduce was 0, is 7" in told[2]


def test_a_program_is_compiled_once_and_another_one_anew(tmp_path, monkeypatch):
    """What was found is kept by the program, so that no change of code is planned as the old."""
    times = []
    monkeypatch.setattr(
        compiler_output, "_compiled", lambda *_: times.append(0) or {"number": len(times)}
    )
    machine = targets.parse("cpu:1")
    layout = mesh.make("dp", 1)

    def kept(function, folder=str(tmp_path / "plans")):
        return compiler_output.kept(jax.jit(function).lower(jnp.ones(3)), machine, layout, folder)[
            "number"
        ]

    assert [kept(jnp.sin), kept(jnp.sin), kept(jnp.cos), kept(jnp.sin)] == [1, 1, 2, 1]
    assert kept(jnp.sin, None) == 3
    monkeypatch.setattr(compiler_output, "versions", lambda: {"jax": "another"})
    assert kept(jnp.sin) == 4
    assert all(path.suffix == ".json" for path in (tmp_path / "plans").iterdir())


def test_a_recipe_that_computes_its_values_is_told_the_memory_of_the_target():
    def parts(target, *more):
        given = ["auto.images=10000", "model.name=vitl", *more]
        options = {"images": None, "stage": "adapt"}
        return compile.load("adapt", targets.parse(target), given, **options).accumulate

    small, large = parts("rtx4090:1"), parts("h200:1")
    assert small > large >= 1
    assert parts("rtx4090:1", "auto.memory=126") == large  # what is set by hand stays
    assert parts("cpu:1") == 1  # not known

"""The script for one GPU: turns with another process, and a whole run of a tiny step on the CPU."""

import json
import sys

import pytest

from benchmarks import gpu

WORKER = """
import json, sys
print(json.dumps({"torch": "none"}), flush=True)
for line in sys.stdin:
    if int(line) == 13:
        raise SystemExit(3)
    print(2.0 * int(line), flush=True)
"""


@pytest.fixture
def worker():
    made = gpu.Worker([sys.executable, "-c", WORKER])
    yield made
    made.close()


def test_ratios_are_of_rounds_in_turns_with_another_process(worker):
    assert worker.describe() == {"torch": "none"}
    ours = iter([4.0, 8.0, 2.0])
    found = gpu.in_turns(lambda num: next(ours), worker.seconds, rounds=3)
    assert found["ratios"] == [4.0, 2.0, 8.0], "16 seconds of its own each round"
    assert (found["ratio"], found["value"], found["baseline"]) == (4.0, 4.0, 16.0)


def test_a_process_that_ends_is_told_with_its_status(worker):
    worker.describe()
    with pytest.raises(RuntimeError, match="ended with 3"):
        worker.seconds(13)


def test_cases_are_legal_configs_of_one_device():
    from dinojax import config as configs

    for case in gpu.CASES:
        config = configs.load(case.recipe, list(case.overrides), smoke=case.smoke)
        assert config.mesh.devices == 1 and config.batch_size == config.group_size


@pytest.mark.slow
def test_a_small_run_prints_and_keeps_every_row(monkeypatch, capsys, tmp_path, worker):
    monkeypatch.setattr(gpu, "Worker", lambda command: worker)
    monkeypatch.setattr(gpu, "set_environment", lambda out, shared: out.mkdir(exist_ok=True))
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "STEPS", 2)
    out = str(tmp_path / "out")
    monkeypatch.setattr("sys.argv", ["gpu", "--out", out, "--small", "--reference", "toy"])
    gpu.main()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kept = [json.loads(line) for line in (tmp_path / "out" / "gpu.jsonl").read_text().splitlines()]
    assert kept == printed
    rows = {row["name"]: row for row in printed}
    assert rows["tiny"]["value"] > 0 and rows["tiny"]["model_mfu"] is None, "no GPU's peak"
    assert rows["tiny, equality"]["equal"] is True
    spent = rows["tiny, phases"]
    assert {"crops rest", "optimizer rest"} <= set(spent), spent
    assert any("student backward" in name for name in spent)
    assert rows["against the reference"]["ratio"] > 0


def test_what_no_time_is_left_for_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "lowered_cases", lambda cases, pool: _done(cases, pool))
    found = list(gpu.run(gpu.SMALL, out=tmp_path, deadline=0.0, worker=None, images=4))
    assert found == [{"name": "tiny", "skipped": "no time is left"}]


def _done(cases, pool):
    return [(case, None, pool.submit(lambda: None)) for case in cases]

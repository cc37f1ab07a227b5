"""What a long run is judged by."""

import json

import pytest

from tests.programs import long_run
from tests.programs.long_run import Look


def looks(rise=0.0, files=0, threads=0):
    """Twenty thousand steps; rise: MB per 1,000 steps. The first two thousand fill caches."""
    return [
        Look(
            step,
            500.0 + min(step, 2000) * 0.05 + rise * step / 1000 + (step // 100) % 3,
            20 + files * (step // 10_000),
            30 + threads * (step // 10_000),
        )
        for step in range(0, 20_000, 100)
    ]


def test_a_steady_run_is_fine():
    found = long_run.judged(looks())
    assert found["faults"] == [] and abs(found["megabytes_per_1000_steps"]) < 0.02


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"rise": 0.3}, "MB more per 1,000 steps"),
        ({"files": 1}, "20 files became 21"),
        ({"threads": 2}, "30 threads became 32"),
    ],
)
def test_growth_of_any_kind_is_found(more, fault):
    (told,) = long_run.judged(looks(**more))["faults"]
    assert fault in told


def test_the_last_step_is_that_of_the_last_whole_row(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert long_run.last_step(file) == 0
    rows = "".join(json.dumps({"step": n, "loss": 0.5}) + "\n" for n in range(2000))
    file.write_text(rows + '{"step": 20')
    assert long_run.last_step(file) == 1999

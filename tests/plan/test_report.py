"""What a plan's numbers are made into."""

import pytest

from dinojax.plan import report, step_model, targets
from tests.support.planned import FOUND


def test_components_add_up_to_the_peak():
    found = step_model.components(FOUND)
    assert found["logits"] == 4000 and found["sinkhorn"] == 1800
    assert found["gradients"] == found["student"]
    assert sum(found.values()) - found["sinkhorn"] == FOUND["memory"]["peak"]


def test_the_model_waits_for_what_is_not_hidden():
    """Products take two seconds at half of peak; 1.8 of 1.9 seconds of gathers hide behind them."""
    model = step_model.modelled(FOUND, price=3.0)
    assert model["compute_seconds"] == pytest.approx(2.0)
    assert model["waiting_seconds"] == pytest.approx(1.0), "a third of the torus for two devices"
    assert model["step_seconds"] == pytest.approx(2.0 + 1.0 + 0.1)
    assert model["images_per_second"] == pytest.approx(64 / 3.1)
    hours = 1e6 / 64 * 3.1 / 3600 * 8
    assert model["device_hours_per_million_images"] == pytest.approx(hours)
    assert model["cost_per_million_images"] == pytest.approx(3 * hours)
    assert "uncalibrated" in model["note"]


def test_tables_say_what_fits_and_what_does_not():
    fits = step_model.complete(FOUND)
    without = {key: value for key, value in FOUND.items() if key not in ("memory", "collectives")}
    large = without | {"fits": False, "out_of_memory": "138G exceeds", "strategy": "dp"}
    refused = {"target": "v5p:2x2x2", "strategy": "hsdp", "error": "no such mesh"}
    text = report.summary([fits, step_model.complete(large), refused])
    rows = text.splitlines()
    assert "| pretrain | 256/112 (70%) | fsdp | 1 x 8 x 1 | 9.00 | 95.7 | yes |" in rows[2]
    assert "| 1140.00 / 1.00 | 0.00 / 0.50 | 200.00 / 0.00 |" in rows[2]
    assert rows[2].endswith("| 33 |")
    assert len({row.count("|") for row in rows[:5]}) == 1, "all rows are as wide"
    assert "| dp | 1 x 8 x 1 | 138G exceeds | 95.7 | no |" in rows[3]
    assert "refused: no such mesh" in rows[4]
    assert "all-gather 1.000 GB, reduce-scatter 0.500 GB, all-reduce 0.000 MB" in report.details(
        fits
    )
    told = "(float32 here): 20.000 GB in float32, 0.1 s*; 10.000 GB in bfloat16, 0.05 s*"
    assert told in report.details(fits), "at the pace of 200 GB in the second that is waited for"
    assert "does not fit: 138G exceeds" in report.details(step_model.complete(large))
    told = report.details({**fits, "changes": [fits | {"overrides": ["model.remat=full"]}]})
    assert "fits with model.remat=full: peak 9.00 GiB" in told


def test_large_parameters_that_are_whole_are_marked():
    row = {"name": "a", "shape": [4096, 2048], "axes": ["width", None], "sharded": {}}
    row |= {"bytes": 2**25, "device_bytes": 2**25}
    split = row | {"name": "b", "sharded": {"width": "fsdp=8"}, "device_bytes": 2**22}
    text = report.shards([split, row], 8)
    assert text.splitlines()[0].startswith("* a ")
    assert "width over fsdp=8" in text and "1 large ones are whole" in text
    assert "large" not in report.shards([split], 8)
    assert "large" not in report.shards([row], 1)


@pytest.mark.parametrize(
    ("target", "devices", "first", "group", "near", "speed"),
    [
        ("h100:30x8", 240, 0, 8, True, 450e9),
        ("h100:30x8", 48, 4, 4, True, 450e9),
        ("h100:30x8", 8, 6, 4, True, 50e9),  # over two machines
        ("h100:30x8", 48, 8, 16, True, 8 * 50e9),  # all cards of two
        ("h100:30x8", 48, 6, 16, True, 50e9),
        ("h100:30x8", 15, 0, 15, True, 50e9),  # some cards of two
        ("h100:30x8", 240, 0, 30, False, 50e9),
        ("h100:30x8", 6, 8, 3, False, 450e9),  # all in one machine
        ("h100:1x6", 6, 0, 6, True, 450e9),
        ("h100:8x4", 32, 0, 8, True, 4 * 50e9),
    ],
)
def test_bytes_between_gpus_go_by_the_machines_they_lie_in(
    target, devices, first, group, near, speed
):
    found = {"kind": "all-gather", "group": group, "near": near, "overlapped": False, "count": 1}
    program = {"flops": 0.0, "collectives": [{**found, "wire": speed}]}
    program |= {"devices": devices, "first": first}
    seconds = step_model._seconds(program, targets.parse(target))
    assert seconds["step_seconds"] == pytest.approx(1.0)

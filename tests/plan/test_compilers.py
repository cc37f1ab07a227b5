"""Plans by the compilers of TPUs and GPUs that are not there: bytes, peak and sums of gradients.

They run where `pip install 'dinojax[plan]'` has been; DINOJAX_TEST_PLANS=1 makes a missing compiler
an error. `python -m benchmarks.sharding --remake benchmarks/baselines/sharding.json` makes the
table anew that they are compared with.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sharding
from dinojax.cli import plan
from dinojax.plan import compilers, report, targets

BASELINES = Path(__file__).parent.parent.parent / "benchmarks" / "baselines" / "sharding.json"
ROWS = [row for row in json.loads(BASELINES.read_text()) if not row["target"].startswith("cpu")]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def as_in_runs(monkeypatch):
    """Tests compile with fewer optimizations (conftest.py)."""
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")


def compiler_of(target: str) -> None:
    """Skips, or fails if it was promised, where the compiler of a target is missing."""
    try:
        compilers.check_compiler(targets.parse(target))
    except ModuleNotFoundError as error:
        if os.environ.get("DINOJAX_TEST_PLANS") == "1":
            raise
        pytest.skip(str(error))


TARGETS = ("h100:1x8", "v5p:2x2x2", "v6e:4x4", "tpu7x:2x2x1")


@pytest.mark.parametrize("target", ["v5p:4x8x8", "tpu7x:4x4x8"])
def test_square_kernels_are_not_summed_whole(target):
    """Those of the 7B network, which is too large to be planned here."""
    compiler_of(target)
    found, _ = plan.process("tests.support.square_kernels", target, {"target": target})
    sent, parts = found["sent"], found["parts"]
    assert sent["all-gather"] == sent["reduce-scatter"] == parts
    assert sent["all-reduce"] < 0.1 * parts, "of what is left of the parts, between copies"


def test_a_curation_on_a_tpu_is_that_of_the_closed_form():
    """What is smaller than the memory on the chip itself may be held there a second time."""
    target = "v5p:2x2x1"
    compiler_of(target)
    overrides = ["embed.features=cls", "kmeans.clusters=[8000]", "dedup.center=false"]
    asked = {"target": target, "images": 1_000_000, "width": 1024, "overrides": overrides}
    found, _ = plan.process("dinojax.plan.curation", target, asked)
    rows = [row for row in found["rows"] if "flops" in row]
    assert {row["step"] for row in rows} == {"embed", "dedup", "k-means 1"}
    for row in rows:
        form, what = row["form"], row["what"]
        assert row["flops"] == pytest.approx(form["flops"], rel=0.01), what
        assert row["sent"] == pytest.approx(form["sent"], rel=0.2), what
        if form["peak"] > 2**27:
            assert row["memory"]["peak"] == pytest.approx(form["peak"], rel=0.2), what
        assert row["fits"] and row["seconds"] > 0, what


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        *((kind, target) for kind in ("vit", "embed") for target in TARGETS),
        ("convnext", TARGETS[0]),
        *(pytest.param("convnext", t, marks=pytest.mark.exhaustive) for t in TARGETS[1:]),
    ],
)
def test_no_sum_has_a_16_bit_total(target, kind):
    compiler_of(target)
    asked = {"target": target, "kind": kind}
    found, _ = plan.process("tests.support.compiled_sums", target, asked)
    assert found == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['target']}-{row['strategy']}")
def test_a_target_s_compiler_sends_what_the_closed_form_says(row):
    compiler_of(row["target"])
    found = plan.one(row["recipe"], row["target"], row["overrides"])
    assert found["fits"] and found["replicated"] == []
    wire, form = report.wire_by_kind(found), found["closed_form"]
    # In a network this small one gather of prototypes may serve several passes.
    assert wire["all-gather"] == pytest.approx(form["all-gather"], rel=0.15)
    # As parts, and those of all crops together.
    assert wire.get("reduce-scatter", 0.0) == pytest.approx(form["reduce-scatter"], rel=0.1)
    # Beside copies and vectors nothing is summed whole, which takes twice the bytes of scattering.
    assert wire["all-reduce"] - form["all-reduce"] < 0.1 * 2 * form["reduce-scatter"]
    if found["versions"] == row["versions"]:
        assert sharding.differences(found, row) == []


def test_kernels_of_a_step_move_what_the_committed_table_says(tmp_path):
    """In a process of its own: it sets what a compiler is told before jax is there."""
    compiler_of("h100:1x1")
    rows = json.loads((BASELINES.parent / "roofline.json").read_text())
    own = tmp_path / "roofline.json"
    own.write_text(json.dumps([row for row in rows if row["recipe"] == "tiny"]))
    command = [sys.executable, "-m", "benchmarks.roofline", "--check", str(own)]
    assert len(json.loads(own.read_text())) == 1
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]

"""What an earlier release left goes on: its run, its checkpoint, its exports (recorded/earlier)."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import dinojax
from dinojax.cli.main import main
from dinojax.runs.scalars import read_metrics
from dinojax.train import trainer
from tests.support import small

QUICKLY = "--no-certificate"  # which runs the networks; tested elsewhere
EARLIER = Path(__file__).parent.parent / "recorded" / "earlier"


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A copy, in which one stands as its paths are relative."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_its_run_continues_to_the_end_that_it_had_itself(there, monkeypatch):
    monkeypatch.setattr(trainer, "compile_step", lambda built: built.lower().compile(small.FAST))
    assert main(["train", "--run", "run"]) == 0
    rows = read_metrics(there / "run" / "metrics.jsonl")
    expected = [json.loads(line) for line in (there / "whole.jsonl").read_text().splitlines()]
    for one in expected:
        (row,) = [r for r in rows if r["step"] == one["step"] and one.keys() <= r.keys()]
        for name, value in one.items():
            assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-4), (one["step"], name)
    assert main(["export", "--run", "run", "--format", "meta", "--out", "ours", QUICKLY]) == 0
    # Not weights: where a gradient is nothing but rounding (biases of keys) Adam follows that.
    pixels = np.load(there / "features.npz")["pixels"]
    ours, theirs = (dinojax.load(there / name)(pixels) for name in ("ours", "end"))
    np.testing.assert_allclose(ours.cls, theirs.cls, rtol=0, atol=1e-3)
    np.testing.assert_allclose(ours.patches, theirs.patches, rtol=0, atol=1e-3)


@pytest.mark.parametrize("exported", ["hf", "meta"])
def test_its_exports_load_and_give_its_features(there, exported):
    recorded = np.load(there / "features.npz")
    features = dinojax.load(exported)(recorded["pixels"])
    for name in ("cls", "patches"):
        np.testing.assert_allclose(getattr(features, name), recorded[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("exported", ["hf", "meta"])
def test_its_checkpoint_holds_the_bits_of_its_exports(there, exported):
    assert main(["export", "--run", "run", "--format", exported, "--out", "ours", QUICKLY]) == 0
    ours, theirs = (dinojax.load(there / name).params for name in ("ours", exported))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

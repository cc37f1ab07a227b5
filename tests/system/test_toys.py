"""Adding a loss, a data format, a strategy, a verb or a size touches the files that are promised.

Toys of tests/support/toys.py are put into a copy of the tree, and everything that lists such things
is asked for them.
"""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import several
from tests.support.toys import TOYS

ROOT = Path(__file__).parent.parent.parent


def add(tree: Path, files: dict) -> None:
    """Put a toy into a tree. Raises AssertionError for a place that has changed."""
    for name, changes in files.items():
        path = tree / name
        if changes[0][0] == "":
            assert not path.exists(), f"{name} is there already"
            path.write_text(changes[0][1])
            continue
        text = path.read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{name}: {old!r}"
            text = text.replace(old, new)
        path.write_text(text)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    for name in ("dinojax", "configs", "docs", "tests"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "recorded", "golden"),
        )
    for files, _ in TOYS.values():
        add(folder, files)
    return folder


def run(tree: Path, *command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd or tree,
        env=several.environment(2, PYTHONPATH=str(tree)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("what", TOYS)
def test_a_toy_touches_as_many_files_as_contributors_are_promised(what):
    files, number = TOYS[what]
    assert len(files) == number
    told = (ROOT / "CONTRIBUTING.md").read_text()
    row = re.search(rf"^\| {what} \| (\d) \| (.*) \|$", told, re.MULTILINE)
    assert row is not None and int(row[1]) == number
    for name in files:
        assert name in row[2] or f"{Path(name).parent}/" in row[2], name


@pytest.mark.parametrize("what", TOYS)
def test_the_worked_example_is_the_toy(what):
    """Every line that a toy adds stands in docs/contributing.md."""
    page = (ROOT / "docs/contributing.md").read_text().splitlines()
    for changes in TOYS[what][0].values():
        for old, new in changes:
            lines = [line for line in new.splitlines() if line not in old.splitlines()]
            assert [line for line in lines if line not in page] == []


@pytest.mark.slow
def test_toys_are_in_every_list(tree):
    """Help, explanations, checks and words, none of which was touched."""
    told = run(tree, "dinojax", "--help")
    assert re.search(r"^ +toy +count the keys", told, re.MULTILINE)
    assert run(tree, "dinojax", "toy", "--config", "tiny").endswith(" keys\n")
    assert "'toy'" in run(tree, "dinojax", "config", "explain", "mesh.strategy")
    assert "'toy'" in run(tree, "dinojax", "config", "explain", "data.source")
    words = run(tree, "dinojax", "plan", "--words", "tiny", "--set", "losses.toy=0.25")
    assert "toy 0.25" in words
    run(tree, "pytest", "-q", "-p", "no:cacheprovider", "tests/losses/test_toy.py",
        "tests/sharding/test_toy.py", "tests/config/test_config.py")  # fmt: skip


@pytest.mark.slow
def test_a_run_uses_all_of_them(tree, tmp_path):
    rng, lines = np.random.default_rng(0), []
    for _ in range(32):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(file, "PNG")
        lines.append(base64.b64encode(file.getvalue()).decode())
    (tmp_path / "images.txt").write_text("\n".join(lines))
    sizes = [f"model.{name}=None" for name in ("width", "depth", "num_heads", "ffn", "ffn_ratio")]
    settings = ["data.source=toy", "data.path=images.txt", "losses.toy=0.5", "mesh.strategy=toy"]
    settings += ["model.name=vittoy", *sizes, "num_steps=2", "batch_size=16", "log.every=1"]
    settings += ["schedules.lr.warmup=1", "schedules.teacher_temperature.warmup=1"]
    settings += ["log.pictures=False", "dino_head.prototypes=64", "ibot_head.prototypes=64"]
    flags = [word for setting in settings for word in ("--set", setting)]
    run(tree, "dinojax", "train", "--config", "tiny", "--run", "run", *flags, cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "total" in row]
    assert [row["step"] for row in losses] == [1, 2] and all(row["toy"] > 0 for row in losses)
    for row in losses:  # weights of tiny; 8 pairs of a local and a global crop, 2 of global ones
        others = 0.8 * row["dino_local"] + 0.2 * row["dino_global"] + row["ibot"]
        assert row["total"] == pytest.approx(others + 0.2 * row["koleo"] + 0.5 * row["toy"], 1e-4)
    report = (tmp_path / "run/report.html").read_text()
    assert re.search(r"\btoy\b", report.replace("losses.toy", ""))
    script = "import dinojax; b = dinojax.load('run'); print(b.spec.width, b.spec.depth)"
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=several.environment(1, PYTHONPATH=str(tree)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.stdout == "24 2\n", told.stderr[-2000:]

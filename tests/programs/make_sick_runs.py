"""Records small real runs, healthy and sick on purpose, for tests/monitor/test_sick_runs.py.

    python -m tests.programs.make_sick_runs [NAME ...]     # all of RUNS; minutes each on a CPU

Each is the tiny recipe made smaller (SMALL) and trained by `dinojax train`; what ails it is one or
two plain config keys, nothing is simulated. What a doctor can read of it goes to
tests/recorded/runs/NAME: config.json, env.json, resumes.jsonl, log.txt, autopsies without images,
one small file of every checkpoint to show that it was there, and metrics.jsonl with numbers
rounded to five digits. provenance.json there holds the command, the date and what was left out.
"""

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from dinojax.checkpoint.manager import COMMITTED
from dinojax.data.tiles import PHOTOGRAPHS, photograph_path

ROOT = Path(__file__).parent.parent.parent
RECORDED = Path(__file__).parent.parent / "recorded" / "runs"
LARGE_IMAGES = "large-images"  # a folder beside the runs, made for the one that starves
MARKERS = ("_CHECKPOINT_METADATA", COMMITTED)  # of a checkpoint, a few hundred bytes

SMALL = (
    *("num_steps=240", "batch_size=32", "crops.num_local=2", "model.width=48"),
    *("dino_head.prototypes=128", "ibot_head.prototypes=128"),
    *("schedules.lr.warmup=30", "schedules.teacher_temperature.warmup=60"),
    *("log.every=6", "log.pictures=False", "checkpoint.every=80", "knn.every=80"),
)


@dataclasses.dataclass(frozen=True)
class Sick:
    """A run: what was done to it, by which keys, and after how many rows it is stopped."""

    what: str
    overrides: tuple[str, ...] = ()
    stop_after: int | None = None


RUNS = {
    "healthy": Sick("nothing"),
    "healthy_softmax": Sick(
        "nothing; another seed, softmax centering, colour, registers, another width",
        (
            *("seed=1", "losses.centering=softmax", "image.channels=3"),
            *("model.num_registers=2", "model.width=64", "model.num_heads=4"),
        ),
    ),
    "stopped": Sick("nothing; SIGTERM after some rows", ("seed=2",), stop_after=20),
    "collapsed": Sick(
        "targets are not centred (a center that never moves) and nothing spreads the images",
        ("losses.centering=softmax", "losses.center_momentum=1.0", "losses.koleo=0.0"),
    ),
    "at_chance": Sick(
        "a learning rate of almost nothing, and prototypes of any length",
        (
            *("schedules.lr.peak=1e-9", "schedules.lr.end=1e-9"),
            *("dino_head.prototype_norm=none", "ibot_head.prototype_norm=none"),
        ),
    ),
    "not_learning": Sick("a learning rate of 0", ("schedules.lr.peak=0.0", "schedules.lr.end=0.0")),
    "teacher_frozen": Sick(
        "a momentum of 1 from the start",
        ("schedules.momentum.start=1.0", "schedules.momentum.peak=1.0"),
    ),
    "data_starved": Sick(
        "images far larger than needed, and one thread to decode them",
        (
            *("data.source=folder", f"data.path={LARGE_IMAGES}", "data.num_threads=1"),
            *("data.prefetch=1", "num_steps=60", "log.every=4"),
        ),
    ),
    "exploding": Sick(
        "a learning rate a thousand times too high, and gradients are not clipped",
        ("schedules.lr.peak=2.0", "schedules.lr.end=2.0", "optim.clip=None"),
    ),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    names = parser.parse_args(argv).names or list(RUNS)
    unknown = sorted(set(names) - set(RUNS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; choose of {', '.join(RUNS)}")
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            command, code = train(name, Path(work))
            size = record(name, Path(work) / name, {"command": command, "exit_code": code})
        print(f"{name}: exit code {code}, {size / 1024:.0f} KiB", flush=True)


def train(name: str, work: Path) -> tuple[str, int]:
    """Train a run in WORK/NAME; (the command, its exit code)."""
    sick = RUNS[name]
    if f"data.path={LARGE_IMAGES}" in sick.overrides:
        large_images(work / LARGE_IMAGES)
    given = {override.split("=")[0] for override in sick.overrides}
    overrides = [o for o in SMALL if o.split("=")[0] not in given] + list(sick.overrides)
    arguments = ["train", "--config", "tiny", "--run", name]
    arguments += [part for override in overrides for part in ("--set", override)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "dinojax", *arguments], cwd=work, env=env)
    if sick.stop_after is not None:
        stop_after(process, work / name / "metrics.jsonl", sick.stop_after)
    return " ".join(["dinojax", *arguments]), process.wait()


def stop_after(process: subprocess.Popen, metrics: Path, num_rows: int) -> None:
    """SIGTERM once that many rows are written."""
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= num_rows:
            process.send_signal(signal.SIGTERM)
            return
        time.sleep(0.1)


def large_images(folder: Path, count: int = 64, side: int = 1024) -> None:
    """Squares of the tiles' photographs, enlarged, as PNGs: slow to decode."""
    folder.mkdir()
    paths = [photograph_path(name) for name in PHOTOGRAPHS]
    for number in range(count):
        with Image.open(paths[number % len(paths)]) as image:
            grey = image.convert("L")
        left, top = (number // len(paths)) % 2, (number // len(paths)) // 2
        half = min(grey.size) // 2
        box = (left * half, top * half, (left + 1) * half, (top + 1) * half)
        grey.resize((side, side), box=box).save(folder / f"{number:02}.png")


def record(name: str, run: Path, provenance: dict) -> int:
    """Copy what a doctor reads to RECORDED/NAME; the bytes it takes."""
    target = RECORDED / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    kept = ["config.json", "env.json", "log.txt", "resumes.jsonl", "bad_images.jsonl"]
    kept += [str(path.relative_to(run)) for path in run.glob("autopsy/*/step.json")]
    for marker in MARKERS:
        kept += [str(path.relative_to(run)) for path in run.glob(f"checkpoints/*/*/{marker}")]
    for path in kept:
        if (run / path).exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / path, target / path)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({key: rounded(value) for key, value in row.items()}) for row in rows]
    (target / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    provenance = {
        "what": RUNS[name].what,
        **provenance,
        "date": datetime.date.today().isoformat(),
        "made_by": f"python -m tests.programs.make_sick_runs {name}",
        "left_out": "checkpoints, pictures and images; numbers are rounded to five digits",
    }
    (target / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def rounded(value: float | str | None) -> float | str | None:
    return value if value is None or isinstance(value, (int, str)) else float(f"{value:.5g}")


if __name__ == "__main__":
    main()

"""Shows what the tiny family gains by its teacher: over random weights, and over learning alone.

    python -m tests.programs.family_gain OUT [--seeds 0 1]   # goes on with what OUT holds already

Trains the teacher once, and for every seed the family of configs/distill_tiny.py and each of its
networks alone, on the same images, batches and global crops for the same number of steps. This file
is the recipe of learning alone: all that tiny does, with the learning rate and the ema of tiny, and
with those of the family. What is better on the tiles for choosing settings counts. Last, every
student of the first seed is exported with a certificate of equality. What came out is recorded in
tests/recorded/family_gain.json.
"""

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from dinojax import config as configs
from dinojax.config import Config
from dinojax.config.recipe import flat
from dinojax.configs import base, distill_tiny, tiny
from dinojax.runs.directory import FREE_KEYS

ROOT = Path(__file__).parent.parent.parent
RECORDED = Path(__file__).parent.parent / "recorded" / "family_gain.json"
FAMILY, ALONE = "configs/distill_tiny.py", "tests/programs/family_gain.py"
TEACHER = "configs/tiny_stages.py"
# Learning rate and momentum of the ema: learning alone is given both, and the better one counts.
WAYS = {"tiny": (2e-3, 0.98), "family": (3e-3, 0.97)}
TAUGHT = tuple(distill_tiny.STUDENTS)
# As launch/quickstart.sh: the C library keeps the buffers of a step.
KEEP = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}


def get_config():
    """tiny, for as many steps on as many images as the family, with its global crops."""
    c, family = tiny.get_config(), distill_tiny.get_config()
    c.update(num_steps=family.num_steps, batch_size=family.batch_size)
    c.augment = family.augment
    for name in ("global_size", "local_size", "global_area", "local_area"):
        c.crops[name] = family.crops[name]
    steps = c.num_steps
    c.schedules.lr = base.schedule(0.0, WAYS["tiny"][0], 2e-5, warmup=steps // 10)
    c.schedules.momentum = base.schedule(WAYS["tiny"][1], WAYS["tiny"][1], 1.0)
    c.schedules.teacher_temperature = base.schedule(0.04, 0.07, 0.07, warmup=steps // 4)
    c.checkpoint = family.checkpoint
    c.knn = family.knn
    c.log = family.log
    return c


# -- what is run ---------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, arguments in commands(args.out, args.seeds).items():
        _run(args.out, name, arguments)
    content = {
        "date": datetime.date.today().isoformat(),
        "recipes": recipes(),
        "runs": json.loads((args.out / "runs.json").read_text()),
        **results(args.out, args.seeds),
    }
    RECORDED.write_text(json.dumps(content, indent=1) + "\n")
    for student in TAUGHT:
        print(student, "; ".join(f"{name} {value:.1f}" for name, value in gains(content, student)))


def commands(out: Path, seeds: list[int]) -> dict[str, list[str]]:
    """Arguments of `dinojax`, by the folder that each fills."""
    found = {"teacher": ["train", "--config", TEACHER, "--run", str(out / "teacher")]}
    for seed in seeds:
        every = [f"seed={seed}", "log.pictures=False"]
        run, options = out / f"family{seed}", [f"distill.teacher={out / 'teacher'}", *every]
        found[run.name] = ["distill", "--config", FAMILY, "--run", str(run), *_set(options)]
        for student in TAUGHT:
            for way in WAYS:
                name = alone(student, seed, way)
                options = [*every, *shape(student), *schedules(way)]
                run = out / name
                found[name] = ["train", "--config", ALONE, "--run", str(run), *_set(options)]
    for student in TAUGHT:
        run, name = out / f"family{seeds[0]}" / student, f"hf_{student}"
        found[name] = ["export", "--run", str(run), "--format", "hf", "--out", str(out / name)]
    return found


def alone(student: str, seed: int, way: str) -> str:
    return f"{student}{seed}_alone_{way}"


def schedules(way: str) -> list[str]:
    peak, momentum = WAYS[way]
    ema = [f"schedules.momentum.{name}={momentum}" for name in ("start", "peak")]
    return [f"schedules.lr.peak={peak}", *ema]


def shape(student: str) -> list[str]:
    """What makes the network of a student out of that of tiny, for --set."""
    plain, own = configs.load("tiny"), configs.load_students(FAMILY)[student][0]
    different = configs.diff(plain, own)
    return [f"{key}={value}" for key, _, value in different if key.startswith("model.")]


def _set(options) -> list[str]:
    return [part for option in options for part in ("--set", option)]


def _run(out: Path, name: str, arguments: list[str]) -> None:
    """One command, unless it was run before; runs.json holds what it took."""
    path = out / "runs.json"
    runs = json.loads(path.read_text()) if path.exists() else {}
    if name in runs:
        return
    before, began = _processor_seconds(), time.monotonic()
    env = os.environ | KEEP | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "dinojax", *arguments], cwd=ROOT, env=env, check=True)
    runs = json.loads(path.read_text()) if path.exists() else {}
    runs[name] = {
        "command": " ".join(["dinojax", *arguments]).replace(str(out), "OUT"),
        "processor_seconds": round(_processor_seconds() - before),
        "wall_seconds": round(time.monotonic() - began),
    }
    path.write_text(json.dumps(runs, indent=1) + "\n")


def _processor_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


# -- what came out -------------------------------------------------------------------------------


def recipes() -> dict[str, dict]:
    """Of the teacher, the students and learning alone: what decides their results."""
    found = {f"alone, as {way}": configs.load(ALONE, schedules(way)) for way in WAYS}
    found |= {f"teacher/{c.stage}": c for c in configs.load_stages(TEACHER)}
    found |= {name: stages[0] for name, stages in configs.load_students(FAMILY).items()}
    return {name: _changed(config) for name, config in found.items()}


def _changed(config: Config) -> dict:
    """Keys that differ from configs/keys/, but for those that change no result."""
    defaults = flat(base.get_config())
    changed = {key: value for key, value in config.values().items() if value != defaults[key]}
    kept = {k: v for k, v in changed.items() if not k.startswith(FREE_KEYS) or "knn." in k}
    return json.loads(json.dumps(kept))


def results(out: Path, seeds: list[int]) -> dict:
    """k-NN in percent: {"teacher": row, "students": {student: [row per seed]}}, certificates."""
    students = {
        student: [
            {
                "seed": seed,
                "taught": scores(out / f"family{seed}" / student),
                "alone": {way: scores(out / alone(student, seed, way)) for way in WAYS},
            }
            for seed in seeds
        ]
        for student in TAUGHT
    }
    certificates = {}
    for student in TAUGHT:
        parity = json.loads((out / f"hf_{student}" / "parity.json").read_text())
        worst = max(row["relative"] for row in parity["rows"])
        certificates[student] = {**parity, "rows": len(parity["rows"]), "worst": worst}
    return {"teacher": scores(out / "teacher"), "students": students, "certificates": certificates}


def scores(run: Path) -> dict[str, float]:
    """`val`: tiles for choosing settings. `test`, `random`, `raw`: tiles for the last measurement.

    random: the best features of the same network's random weights.
    """
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    kind = json.loads((run / "config.json").read_text())["config"]["knn"]["features"]
    val = [row[f"knn/{kind}"] for row in rows if f"knn/{kind}" in row][-1]
    last = json.loads((run / "quickstart.json").read_text())
    named = {"val": val, "test": last["ema"], "random": last["random"], "raw": last["raw"]}
    return {name: round(value, 2) for name, value in named.items()}


def best_alone(row: dict) -> dict[str, float]:
    """Of the two ways, the one that is better on the tiles for choosing settings."""
    return max(row["alone"].values(), key=lambda found: found["val"])


def gains(content: dict, student: str) -> list[tuple[str, float]]:
    """Held-out tiles, means over seeds: what a student scores, and over what it gains how much."""
    rows = content["students"][student]
    taught = statistics.mean(row["taught"]["test"] for row in rows)
    without = statistics.mean(best_alone(row)["test"] for row in rows)
    random = statistics.mean(row["taught"]["random"] for row in rows)
    return [("taught", taught), ("over_alone", taught - without), ("over_random", taught - random)]


if __name__ == "__main__":
    main()

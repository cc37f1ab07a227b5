"""Shows that a long run does not grow: memory, open files and threads over many steps.

    python -m tests.programs.long_run OUT --steps 20000   # some 15 processor minutes

This file is also the recipe, a network so small that the program around it is what grows if
anything does. `dinojax train` runs it in a process of its own, with a checkpoint and k-NN every
thousand steps, a row of metrics every ten and a report at the end, and is watched from outside,
from /proc. The last line is JSON; exit code 1 if resident memory rises by MOST MB or more per
1,000 steps after step SETTLED (at rest, by the line of least squares), or if files or threads get
more.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinojax.configs import tiny
from dinojax.files.drafts import write_json

ROOT = Path(__file__).parent.parent.parent
MOST = 0.2  # MB per 1,000 steps
SETTLED = 2000  # steps in which caches fill
EVERY = 2.0  # seconds between looks


class Look(NamedTuple):
    step: int
    megabytes: float  # resident
    files: int
    threads: int


def get_config():
    c = tiny.smoke(tiny.get_config())
    c.num_steps = 20_000
    c.batch_size = 8
    c.crops.num_local = 1
    c.model.update(width=8, depth=1, num_heads=1)
    c.dino_head.update(hidden=8, bottleneck=4, prototypes=16)
    c.ibot_head.update(hidden=8, bottleneck=4, prototypes=16)
    c.augment.blur_rates = (0.0, 0.0, 0.0)
    c.checkpoint.every = 1000
    c.knn.every = 1000
    c.log.every = 10
    return c


def last_step(metrics: Path) -> int:
    """Of the last whole row; 0 before there is one."""
    if not metrics.exists():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 8192))
        lines = file.read().split(b"\n")[1:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def look(pid: int, metrics: Path) -> Look:
    process = Path("/proc") / str(pid)
    fields = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    files = len(os.listdir(process / "fd"))
    megabytes = int(fields["VmRSS"].split()[0]) / 1024
    return Look(last_step(metrics), megabytes, files, int(fields["Threads"]))


def watch(command: list[str], metrics: Path, tell=print) -> list[Look]:
    """Looks at a process until it ends. Raises CalledProcessError if it fails."""
    looks: list[Look] = []
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            time.sleep(EVERY)
            try:
                one = look(process.pid, metrics)
            except (FileNotFoundError, ProcessLookupError, KeyError):
                continue  # it has just ended
            if looks and one.step // 1000 > looks[-1].step // 1000:
                tell(
                    f"step {one.step:6d}  {one.megabytes:7.1f} MB  {one.files} files  "
                    f"{one.threads} threads"
                )
            looks.append(one)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return looks


def judged(looks: list[Look], settled: int = SETTLED) -> dict:
    """The rise of memory per 1,000 steps at rest; fewest files and threads in both end thirds.

    At rest, as a save or an evaluation has memory, files and threads of its own while it lasts: of
    each 1,000 steps the look with least memory counts. At the last step the run is compared and
    reported, which is work that comes once.
    """
    late = [one for one in looks if settled <= one.step < looks[-1].step]
    thousands = itertools.groupby(late, key=lambda one: one.step // 1000)
    rest = [min(part, key=lambda one: one.megabytes) for _, part in thousands]
    steps_N = np.array([one.step for one in rest], np.float64)
    rise = float(np.polyfit(steps_N, [one.megabytes for one in rest], 1)[0]) * 1000
    third = len(late) // 3
    found = {"looks": len(late), "megabytes_per_1000_steps": round(rise, 3), "faults": []}
    if rise >= MOST:
        found["faults"].append(f"{rise:.2f} MB more per 1,000 steps")
    for name in ("files", "threads"):
        early, later = (
            min(getattr(one, name) for one in part) for part in (late[:third], late[-third:])
        )
        found[name] = [early, later]
        if later > early:
            found["faults"].append(f"{early} {name} became {later}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--steps", type=int, default=20_000)
    args = parser.parse_args()
    if args.steps < 2 * SETTLED:
        parser.error(f"--steps {args.steps}: at least {2 * SETTLED}")
    run = args.out / "run"
    command = [sys.executable, "-m", "dinojax", "train", "--config", __file__, "--run", str(run)]
    command += ["--set", f"num_steps={args.steps}", "--set", "mesh.devices=1"]
    looks = watch(command, run / "metrics.jsonl", tell=lambda line: print(line, flush=True))
    found = judged(looks)
    write_json(args.out / "looks.json", [one._asdict() for one in looks])
    print(json.dumps(found))
    return bool(found["faults"])


if __name__ == "__main__":
    sys.exit(main())

"""One of several processes that takes a step per strategy, saves it, and may die or fail on demand.

python -m tests.several_worker OUT STRATEGY[,...]|sleep|die|fail --coordinator ...
"""

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np

from dinojax import cli_hosts, hosts, mesh, program
from dinojax import config as configs
from dinojax.checkpoint import Checkpoints
from dinojax.host_rows import from_own_rows, own_rows
from dinojax.interrupt import Lost
from tests import small

# What a strategy's mesh is besides the strategy; where tensor is 4, it spans processes of two.
MESHES = {"fsdp_tp": ("mesh.tensor=4",)}


# Of small.STAGED, whose programs compile in the least time, what a run of its own needs.
KEPT = [s for s in small.STAGED if not s.startswith(("mesh.", "batch_size", "group"))]


def config(strategy: str, devices: int = 8):
    more = MESHES.get(strategy, ()) if devices == 8 else ()
    places = (f"mesh.strategy={strategy}", f"mesh.devices={devices}", *more)
    overrides = [*KEPT, "batch_size=16", "group_size=2", "optim.eps=1e-3", *places]
    return configs.load("tiny", overrides, smoke=True)


def images(built):
    """The batch of small.images, of which only own rows are looked at."""
    rng = np.random.default_rng(0)
    num, side = built.batch_shape[:2]
    batch = {
        "images": rng.integers(0, 256, built.batch_shape, np.uint8),
        "sizes": rng.integers(side // 2, side + 1, (num, 2)).astype(np.int32),
    }
    own = own_rows(num)
    hidden = {name: np.zeros_like(rows) for name, rows in batch.items()}
    for name, rows in batch.items():
        hidden[name][own] = rows[own]
    return {name: from_own_rows(built.layout, rows) for name, rows in hidden.items()}


def step(strategy: str, devices: int = 8):
    """(state, scalars) of a step from small.numbers, compiled quickly."""
    chosen = config(strategy, devices)
    built = program.build(chosen, mesh.from_section(chosen.mesh))
    with mesh.use(built.layout):
        compiled = built.lower().compile(compiler_options=small.FAST)
        hosts.current().settle("compiled")
        state, scalars = compiled(small.numbers(built), images(built), built.now(small.STEP))
        return state, {name: float(hosts.fetch(value)) for name, value in scalars.items()}


def take(out: Path, strategies: str) -> None:
    team = hosts.current()
    for strategy in strategies.split(","):
        state, scalars = step(strategy)
        checkpoints = Checkpoints(out / strategy, keep_last=1, keep_every=None)
        checkpoints.save(state, step=1, meta={})
        checkpoints.wait()
        checkpoints.close()
        if team.is_main:
            (out / f"{strategy}.json").write_text(json.dumps(scalars))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("what")
    cli_hosts.add(parser)
    args = parser.parse_args()
    code = 0
    try:
        with cli_hosts.joined(args) as team:
            print("joined", flush=True)
            if args.what == "fail" and team.index == 1:
                raise OSError("no such luck")
            if args.what == "die" and team.index == int(os.environ["DIES"]):
                os.kill(os.getpid(), 9)
            if args.what in ("sleep", "die", "fail"):
                time.sleep(600)
            jax.devices()
            take(args.out, args.what)
    except Lost as error:
        print(error, flush=True)
        code = error.code
    except Exception:
        traceback.print_exc()
        code = 1
    cli_hosts.end_together(code)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""One of several processes that trains a little with each strategy, and may die or fail on demand.

python -m tests.support.several_worker OUT STRATEGY[,...]|sleep|die|fail --coordinator ...
"""

import argparse
import gc
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import jax
import pytest
from jax._src import cache_key

from dinojax import config as configs
from dinojax.cli import processes as process_flags
from dinojax.data import tiles
from dinojax.distributed import process_group
from dinojax.distributed.interrupt import Interrupted, Lost
from dinojax.monitor.autopsy import Autopsy
from dinojax.train import finish, loop
from dinojax.train.program import Program
from tests.support import few_tiles_train, small

# What a strategy's mesh is besides the strategy; where tensor is 4, it spans processes of two.
MESHES = {"fsdp_tp": ("mesh.tensor=4",)}
FIRST, LAST = small.STEP + 1, small.STEP + 2  # the steps taken; all are asked to stop at the first
STOPS = 1  # the process that gets the signal

# Of small.STAGED, whose programs compile in the least time, what a run of its own needs.
KEPT = [s for s in small.STAGED if not s.startswith(("mesh.", "batch_size", "group", "knn"))]
SETTINGS = (
    *KEPT,
    *("batch_size=16", "group_size=2", "optim.eps=1e-3", "expect.platform=cpu"),
    "knn.features=cls",
    *(f"num_steps={LAST}", f"knn.every={LAST}", f"checkpoint.every={FIRST}"),
)


def config(strategy: str, devices: int = 8, num_hosts: int | None = None):
    more = MESHES.get(strategy, ()) if devices == 8 else ()
    places = (f"mesh.strategy={strategy}", f"mesh.devices={devices}", *more)
    expected = (f"expect.hosts={num_hosts}", f"expect.devices={devices}") if num_hosts else ()
    return configs.load("tiny", [*SETTINGS, *places, *expected], smoke=True)


def begin(patch: pytest.MonkeyPatch) -> None:
    """Runs start at step 3 with the numbers of small.py, and compile each program once."""
    patch.setattr(tiles, "SPLITS", few_tiles_train.SPLITS)
    small.share_programs(patch)
    patch.setattr(Program, "new_state", small.numbers)
    patch.setattr(finish, "finish", lambda *args, **options: None)


def take(out: Path, strategies: str) -> None:
    """A run OUT/STRATEGY each: a step, SIGTERM to one process, a restore, a step, a k-NN."""
    for strategy in strategies.split(","):
        chosen = config(strategy, num_hosts=process_group.current().count)
        with pytest.MonkeyPatch.context() as patch:
            begin(patch)
            with patch.context() as stopping, pytest.raises(Interrupted) as told:
                stopping.setattr(Autopsy, "keep", stop_all)
                loop.train(chosen, out / strategy)
            print(told.value, flush=True)
            loop.train(chosen, out / strategy)


def stop_all(_, number: int, batch: dict) -> None:
    """In place of Autopsy.keep: one process gets SIGTERM, and all wait until they have heard."""
    processes = process_group.current()
    if processes.index == STOPS:
        os.kill(os.getpid(), signal.SIGTERM)
    while not processes._sync_point._asked:
        time.sleep(0.01)


def compile_once() -> None:
    """Process 0 compiles what all run, and hands it to the others.

    Needs a cache of compiled programs that no other run uses: what one process finds there, and
    another has not, is never handed over. JAX takes the CPU of another process for another
    machine, whose programs have other names.
    """
    cache_key._hash_accelerator_config = cache_key._hash_devices
    jax.config.update("jax_share_binary_between_hosts", True)
    gc.disable()  # a fifth of tracing


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("what")
    process_flags.add(parser)
    args = parser.parse_args()
    code = 0
    try:
        with process_flags.joined(args) as processes:
            print("joined", flush=True)
            if args.what == "fail" and processes.index == 1:
                raise OSError("no such luck")
            if args.what == "die" and processes.index == int(os.environ["DIES"]):
                os.kill(os.getpid(), 9)
            if args.what in ("sleep", "die", "fail"):
                time.sleep(600)
            jax.config.update("jax_compilation_cache_dir", str(args.out / "compiled"))
            compile_once()
            take(args.out, args.what)
    except Lost as error:
        print(error, flush=True)
        code = error.code
    except Exception:
        traceback.print_exc()
        code = 1
    process_flags.end_together(code)
    return code


if __name__ == "__main__":
    sys.exit(main())

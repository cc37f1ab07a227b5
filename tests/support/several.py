"""Starts the processes of one run on this machine, each with simulated CPU devices of its own."""

import contextlib
import importlib.metadata
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SECONDS = 600  # after which a process counts as hanging
# The CPU's compiler takes less than half the time with its older code for fused operations, which
# jaxlib 0.12 no longer has: a flag that is not known ends the process.
_HAS_OLDER = importlib.metadata.version("jaxlib").startswith("0.10.")
QUICK = "--xla_cpu_parallel_codegen_split_count=1"
QUICK += " --xla_cpu_use_fusion_emitters=false" if _HAS_OLDER else ""


class Ended(NamedTuple):
    code: int
    told: str


def free_port() -> int:
    """One whose successor is free as well, for the line.

    Not of those that systems give to connections of their own, which may be gone when it is used.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("", port))
                second.bind(("", port + 1))
            except OSError:
                continue
            return port


def environment(devices: int, **more: str) -> dict[str, str]:
    """Of a process with that many devices; programs compile quickly."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}",
        "NPROC": "32",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        **more,
    }


def start(module: str, args: Sequence[str], *, devices: int, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        env=environment(devices, **more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def places(count: int, port: int) -> list[list[str]]:
    """The flags of every process."""
    flags = ["--coordinator", f"localhost:{port}", "--num-processes", str(count)]
    return [[*flags, "--process-id", str(index)] for index in range(count)]


def wait(started: Sequence[subprocess.Popen], seconds: float = SECONDS) -> list[Ended]:
    """How all ended. Whoever hangs is killed, and so is what waits for it."""
    ended = []
    try:
        for process in started:
            told = process.communicate(timeout=seconds)[0]
            ended.append(Ended(process.returncode, told))
    finally:
        for process in started:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()
            process.wait()
    return ended


def train(run: Path, settings: Sequence[str], *, count: int, devices: int, **more) -> list[Ended]:
    """A run of `count` processes to its end.

    more: of the environment; extra: further flags; begin: the command and its config.
    """
    extra, begin = more.pop("extra", []), more.pop("begin", ("train", "--config", "tiny"))
    sets = [word for setting in settings for word in ("--set", setting)]
    args = [*begin, "--run", str(run), *sets, *extra]
    flags = places(count, free_port()) if count > 1 else [[]]
    order = {"ORDER": str(run) + ".order", **more}
    return wait(
        [
            start("tests.support.few_tiles_train", [*args, *f], devices=devices, **order)
            for f in flags
        ]
    )


def cut(channel) -> None:
    """Close an end of a channel as the kernel does for a process that is killed."""
    for end in channel._ends.values():
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    for reader in channel._readers:
        reader.join(5.0)


def order(run: Path, *, count: int) -> dict[int, list[int]]:
    """Step -> ids of the global batch, from the files of all processes."""
    found: dict[int, list[int]] = {}
    for index in range(count):
        for line in Path(f"{run}.order.{index}").read_text().splitlines():
            row = json.loads(line)
            found[row["step"]] = found.get(row["step"], []) + row["ids"]
    return found

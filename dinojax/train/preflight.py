"""What must hold before a run of several processes does anything costly, checked by all of them.

Every fault is a HostError, raised in all processes, that names the process and the next move.
"""

import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax.config import Config, ConfigError
from dinojax.data import fields
from dinojax.data.example import Source
from dinojax.distributed.process_group import ProcessGroup
from dinojax.files.drafts import write_json, write_text
from dinojax.runs.directory import HOSTS, name_of, package_versions
from dinojax.sharding import gpu_memory

log = logging.getLogger(__name__)

VISIBLE = 20.0  # seconds until a file that one host wrote must be seen by all; NFS caches for some
STARTED = 120.0  # seconds for all processes to import, read their config and list their images
COLLECTIVE = 120.0  # seconds for the first collective, in which connections are made


def check_same(
    processes: ProcessGroup,
    stages: Sequence[Config],
    sources: Mapping[str, Source],
    directory: Path,
) -> None:
    """Config, code, versions and images must be the same in all processes."""
    if processes.count == 1:
        return
    said = {
        "code": _code(),
        "--run": str(directory.absolute()),
        **{f"version of {name}": text for name, text in package_versions().items()},
    }
    for stage in stages:
        name = name_of(stage)
        said |= {f"{name}: {key}": repr(value) for key, value in stage.values().items()}
        said[f"{name}: images"] = f"{len(sources[name]):,}, {sources[name].fingerprint}"
    faults = processes.settle("the same everywhere", said, _others, STARTED)
    if faults:
        lines = "\n  ".join(f"{processes.name(index)}: {text}" for index, text in faults)
        raise ConfigError(
            f"the processes of the run were not started alike; process 0 has other values:\n  "
            f"{lines}\nGive all the same command, code and data."
        )


def _others(said: Sequence[dict]) -> list[tuple[int, str]]:
    """(process, in words) for the first ten values that are not those of process 0."""
    found = []
    for index, values in enumerate(said[1:], 1):
        for key in sorted(said[0] | values):
            ours, theirs = said[0].get(key, "none"), values.get(key, "none")
            if ours != theirs:
                found.append((index, f"{key} is {theirs}, in process 0 {ours}"))
    return found[:10]


def _code() -> str:
    """Digest of the package's own source files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def check_storage(processes: ProcessGroup, directory: Path) -> None:
    """Every process must see in the run directory what process 0 has written, and may write."""
    if processes.count == 1:
        return
    token = processes.settle("token", secrets.token_hex(8))
    if processes.is_main:
        write_json(directory / HOSTS, {"token": token})
    processes.settle("token is written")
    processes.all_or_raise("storage is not shared", _storage_fault(directory, token), STARTED)


def _storage_fault(directory: Path, token: str) -> str | None:
    path, deadline = directory / HOSTS, time.monotonic() + VISIBLE
    move = "put --run on storage that all hosts mount at the same path"
    while True:
        try:
            seen = fields.field(fields.read(path), "token", str, where=path)
            if seen == token:
                break
            fault = f"{path} is another run's"
        except (OSError, ValueError) as error:
            fault = f"{path} of process 0 is not there ({type(error).__name__})"
        if time.monotonic() > deadline:
            return f"{fault}; {move}"
        time.sleep(0.2)
    probe = directory / f".probe.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        return f"{directory} cannot be written to ({error.strerror}); {move}"
    return None


def check_devices(processes: ProcessGroup, expects: Collection[Config]) -> None:
    """Log who has which devices; refuse what `expect` does not want; try one collective."""
    local = jax.local_devices()
    kind, platform = local[0].device_kind, local[0].platform
    mine = {
        "name": processes.name(processes.index),
        "platform": platform,
        "kind": kind,
        "num": len(local),
    }
    mine["memory"] = (local[0].memory_stats() or {}).get("bytes_limit")
    rows = processes.settle("devices", mine, list)
    if processes.is_main:
        for line in table(rows):
            log.info("%s", line)
        if platform == "gpu":
            log.info("%s", gpu_memory.told())
    total, platforms = sum(row["num"] for row in rows), {row["platform"] for row in rows}
    for expect in expects:
        _compare("expect.platform", expect.platform, "/".join(sorted(platforms)))
        _compare("expect.devices", expect.devices, total)
        _compare("expect.hosts", expect.hosts, processes.count)
    if len({(row["platform"], row["kind"], row["num"]) for row in rows}) > 1:
        raise ConfigError(
            "the processes of the run have different devices:\n  " + "\n  ".join(table(rows))
        )
    if processes.count > 1:
        _collective(processes)


def table(rows: Sequence[Mapping]) -> list[str]:
    """A line per process: who it is and what it has."""
    first, lines = 0, []
    for row in rows:
        devices = f"devices {first} to {first + row['num'] - 1}"
        line = f"{row['name']}: {devices}, {row['num']} x {row['kind']} ({row['platform']})"
        limit = row.get("memory")  # of a device, for arrays; on CPUs there is none
        lines.append(line if limit is None else f"{line}, {limit / 2**30:.1f} GiB each")
        first += row["num"]
    return lines


def _compare(key: str, wanted, found) -> None:
    if wanted is not None and wanted != found:
        cpu = " (did JAX fall back to the CPU? see its first warnings)" if found == "cpu" else ""
        raise ConfigError(
            f"{key}={wanted}, but the run has {found}{cpu}; mend the machines, or set {key}."
        )


def _collective(processes: ProcessGroup) -> None:
    """The sum over all devices, so that what cannot talk fails here and not in the first step."""
    devices = sorted(jax.devices(), key=lambda device: device.process_index)
    place = NamedSharding(Mesh(np.array(devices), ("all",)), PartitionSpec("all"))
    began = time.monotonic()
    hangs = f"a sum over all devices did not finish within {COLLECTIVE:.0f} s: is a port closed?"
    watch = threading.Timer(COLLECTIVE, processes.report_stall, (hangs,))
    watch.daemon = True
    watch.start()
    ones = jax.make_array_from_callback((len(devices),), place, lambda _: np.ones(1, np.int32))
    whole = NamedSharding(place.mesh, PartitionSpec())
    found = int(jax.jit(jnp.sum, out_shardings=whole)(ones))
    watch.cancel()
    fault = None if found == len(devices) else f"summed {found}, not {len(devices)}"
    processes.all_or_raise("a sum over all devices is wrong", fault, COLLECTIVE)
    log.info("all %d devices talk to each other (%.1f s)", found, time.monotonic() - began)

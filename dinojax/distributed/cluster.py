"""Who a process is in a run of several: by flags, the environment, or a launcher such as srun."""

import dataclasses
import os

from dinojax.distributed.channel import HostError

WAIT = 300.0  # seconds for all processes to come, by default
# What says that a process is one of several, where we were told of nothing.
MANY = {
    "SLURM_STEP_NUM_TASKS": lambda value: value.isdigit() and int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
    "OMPI_COMM_WORLD_SIZE": lambda value: value.isdigit() and int(value) > 1,
}


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
    """Where a process stands in a run of several."""

    coordinator: str  # HOST:PORT of process 0; the line takes PORT + 1
    count: int
    index: int
    devices: list[int] | None = None  # local ids of the devices it takes, None = all


def find(
    coordinator: str | None, count: int | None, index: int | None, cluster: str | None
) -> ProcessSpec | None:
    """Where this process stands, from flags, else from the environment, else from the cluster.

    cluster: one that JAX knows (slurm, gce_tpu, gke_tpu, ompi, k8s, ...), or "auto". None without
    any of them. Raises HostError if what is told is not whole, and where a launcher has started
    several processes of which we were told nothing.
    """
    told = {
        "--coordinator": coordinator or os.environ.get("DINOJAX_COORDINATOR"),
        "--num-processes": _number("DINOJAX_NUM_PROCESSES", count),
        "--process-id": _number("DINOJAX_PROCESS_ID", index),
    }
    cluster = cluster or os.environ.get("DINOJAX_CLUSTER")
    if cluster is not None:
        return _detected(cluster)
    missing = [flag for flag, value in told.items() if value is None]
    if len(missing) == len(told):
        if (launched := many()) is not None:
            raise HostError(
                f"{launched} says that this is one of several processes; pass "
                "--cluster auto to join them, or --num-processes 1 to run alone."
            )
        return None
    if told["--num-processes"] == 1:
        return None
    if missing:
        raise HostError(f"{', '.join(missing)} missing: a run of several processes needs all.")
    place = ProcessSpec(*told.values())  # type: ignore[arg-type]
    _check(place)
    return place


def many() -> str | None:
    """NAME=VALUE of the environment that says that this is one of several; None alone."""
    for name, several in MANY.items():
        if several(os.environ.get(name, "")):
            return f"{name}={os.environ[name]}"
    return None


def refuse_many(command: str) -> None:
    """Raise HostError if this is one of several, for a command that runs in one process.

    Each would do the same work and write the same files. DINOJAX_NUM_PROCESSES=1 means alone.
    """
    if (told := many()) is not None and os.environ.get("DINOJAX_NUM_PROCESSES") != "1":
        raise HostError(
            f"{told} says that this is one of several processes, but `dinojax {command}` is for "
            "one: start it once, outside of the launcher (or as its only task: srun --ntasks 1), "
            "or set DINOJAX_NUM_PROCESSES=1 if every process has work and files of its own."
        )


def _number(name: str, given: int | None) -> int | None:
    text = os.environ.get(name)
    if given is not None or text is None:
        return given
    if not text.isdigit():
        raise HostError(f"{name}={text!r} is not a number.")
    return int(text)


def _check(place: ProcessSpec) -> None:
    host, _, port = place.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65535:
        raise HostError(f"--coordinator {place.coordinator}: give HOST:PORT of process 0.")
    if not 0 <= place.index < place.count:
        raise HostError(
            f"--process-id {place.index} is not one of 0 to {place.count - 1} "
            f"(--num-processes {place.count})."
        )


_BY_HAND = (
    "start every process with the cluster's launcher (srun for slurm), or give --coordinator "
    "HOST:PORT, --num-processes and --process-id."
)


def _lacking(error: Exception) -> str:
    """In words, why a cluster could not be asked."""
    if isinstance(error, KeyError):
        return f"this is none of its processes, for {error.args[0]} is not in the environment"
    return f"this is none of its processes ({type(error).__name__}: {error})"


def _detected(cluster: str) -> ProcessSpec:
    """What JAX finds out about the cluster that this process runs on."""
    method = None if cluster == "auto" else cluster
    try:
        # Not public, but the only way to know who is missing before JAX ends the process for it.
        from jax._src.clusters import ClusterEnv

        found = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, method, int(WAIT)
        )
    except Exception as error:  # whatever a cluster's environment lacks
        raise HostError(f"--cluster {cluster}: {_lacking(error)}; {_BY_HAND}") from error
    address, count, index, devices = found
    if address is None or count is None or index is None:
        raise HostError(f"--cluster {cluster}: JAX finds no such cluster here; {_BY_HAND}")
    if os.environ.get("SLURM_STEP_NUM_NODES") == os.environ.get("SLURM_NTASKS"):
        devices = None  # one task per node takes all of it, where JAX would give it one device
    return ProcessSpec(address, count, index, None if devices is None else list(devices))

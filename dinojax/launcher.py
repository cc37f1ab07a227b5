"""Whether a launcher, such as srun, started this process as one of several."""

import os

from dinojax.line import HostError

# What says so, where we were told of nothing.
MANY = {
    "SLURM_STEP_NUM_TASKS": lambda value: value.isdigit() and int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
    "OMPI_COMM_WORLD_SIZE": lambda value: value.isdigit() and int(value) > 1,
}


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

"""The flags of `dinojax train` that say which process of a run this is."""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinojax.config.recipe import ConfigError
from dinojax.distributed import cluster, secret
from dinojax.distributed.interrupt import Alarm, Interrupted


def add(train: argparse.ArgumentParser) -> None:
    """The flags; an environment variable DINOJAX_... stands for each that is not given."""
    hosts = train.add_argument_group("several processes")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="process 0, as all others see it")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="of the run, one per host")
    hosts.add_argument("--process-id", type=int, metavar="I", help="of this one, from 0 on")
    hosts.add_argument(
        "--cluster",
        metavar="NAME",
        help="let JAX find out: auto, slurm, gce_tpu, gke_tpu, k8s, ...",
    )
    hosts.add_argument(
        "--wait", type=float, default=300.0, metavar="SECONDS", help="for all to come; default: 300"
    )


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[Any]:
    """As the process that the flags say; all of several hear of an error that one meets."""
    from dinojax.distributed import process_group  # imports jax

    place = cluster.find(args.coordinator, args.num_processes, args.process_id, args.cluster)
    run = getattr(args, "run", None)
    several = place is not None and place.count > 1
    key = secret.of_run(Path(run)) if several and run is not None else b""
    processes = process_group.join(place, wait=args.wait, secret=key)
    try:
        yield processes
    except (Interrupted, Alarm):  # all of them
        raise
    except Exception as error:
        if (shown := processes.failed(error)) is not error:
            raise shown from error
        raise


def seconds(text: str | None) -> float | None:
    """Of a duration such as 3h50m, 90m, 45s or 3600. Raises ConfigError for anything else."""
    if text is None:
        return None
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text)
    found = [int(part or 0) for part in parts.groups()] if parts else [0]
    if not any(found):
        raise ConfigError(f"--max-wall {text}: give a duration such as 3h50m, 90m or 3600 (s)")
    return float(found[0] * 3600 + found[1] * 60 + found[2])


def several() -> bool:
    """Whether this process is one of several."""
    return (
        "dinojax.distributed.process_group" in sys.modules
        and sys.modules["dinojax.distributed.process_group"].current().count > 1
    )


def end_together(code: int) -> None:
    """Of several processes, end this one: process 0, JAX's coordinator, ends last."""
    if several():
        sys.modules["dinojax.distributed.process_group"].current().end(code)

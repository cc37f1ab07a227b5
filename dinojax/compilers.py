"""Compilers of devices: the one table of options they need, and what they warn of.

Runs and plans compile with the same options, so that a plan is that of the run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads what compilers warn of, without waiting for jax
    import jax

# Sparse cores send while the others compute: gathers run beside products, and a sum of gradients
# reaches a device as the part it stores. Without them, sums over more than one dimension of the
# torus are computed whole on every device, at twice the bytes. v5e has none, TPU7x needs no asking.
SPARSE_CORES = {
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}": True
    for kind in (
        *("reduce_scatter", "nd_reduce_scatter"),
        *("all_gather", "2d_all_gather", "3d_all_gather"),
    )
}
# Collectives run beside products.
OVERLAP = {"xla_gpu_enable_latency_hiding_scheduler": True}
# Kind of device as jax names it, else its platform.
OPTIONS: dict[str, dict[str, Any]] = {
    "TPU v5": SPARSE_CORES,  # v5p
    "TPU v5p": SPARSE_CORES,
    "TPU v6 lite": SPARSE_CORES,  # v6e
    "TPU v6e": SPARSE_CORES,
    "gpu": OVERLAP,
    "cuda": OVERLAP,
}


def options(device: jax.Device) -> dict[str, Any]:
    """Of programs for devices of this kind."""
    return dict(OPTIONS.get(device.device_kind, OPTIONS.get(device.platform, {})))


# A line of the partitioner's log, and the parts that say where and what.
REPLICATES = "Involuntary full rematerialization"
WHERE = re.compile(
    r"from sharding (\{.*?\}) to (\{.*?\}) efficiently for HLO operation %\S+ = (\w+\[[\d,]*\])"
    r".*?op_name=\"([^\"]*)\""
)
PARTS = re.compile(r"devices=\[([\d,]+)\]")


def replicated(log: str) -> list[str]:
    """What is made whole on every device on its way from one sharding to another, a line for each.

    log: what compiling wrote to standard error; warnings of XLA must not be turned off. Named are
    the operation as jax calls it, by modules and methods, the array on a device, parts of its axes.
    """
    found: dict[str, None] = {}
    for line in log.splitlines():
        if REPLICATES not in line:
            continue
        match = WHERE.search(line)
        if match is None:  # other words than those of jaxlib 0.10
            found[line[line.index(REPLICATES) :]] = None
            continue
        before, after, array, name = match.groups()
        found[f"{name}: {array}, from {_parts(before)} to {_parts(after)}"] = None
    return list(found)


def _parts(sharding: str) -> str:
    match = PARTS.search(sharding)
    return f"{match[1].replace(',', ' x ')} parts" if match else sharding

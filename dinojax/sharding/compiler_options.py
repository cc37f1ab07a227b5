"""Compilers of devices: the one table of options they need, and what they warn of.

Runs and plans compile with the same options, so that a plan is that of the run.
"""

from __future__ import annotations

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

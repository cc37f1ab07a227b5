"""Options that the compilers of some devices need for a training step: the one table of them.

Runs and plans compile with the same options, so that a plan is that of the run.
"""

from typing import Any

import jax

# The sum of gradients reaches a device as the part it stores. Without these, sums over more than
# one dimension of the torus are computed whole on every device, at twice the bytes; v5e has no such
# cores. TPU7x was seen to need no asking for a small network; for the 7B recipe it sums half.
SPARSE_CORES = {
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": True,
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

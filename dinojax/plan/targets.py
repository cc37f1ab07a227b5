"""Machines that a plan can be made for, without having them: `v5p:4x8x8`, `h100:32x8`, `cpu:8`.

Figures per chip are the vendors' (sources: docs.cloud.google.com/tpu/docs for v5e, v5p, v6e and
tpu7x; nvidia.com for H100 SXM, H200, B200, A100 SXM 80 GB, and, with the white paper of the Ada
architecture, L40S and RTX 4090, which have PCIe 4.0 x16 in place of NVLink); usable memory is what
the TPU compiler enforces, and on GPUs that of the whole card, of which JAX takes a share (A100:
XLA's own description of it; L40S and RTX 4090: what PyTorch tells of them). Network cards are
those of a DGX, and of AWS's g6e.48xlarge for L40S. Times made from them are a model.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from dinojax.plan import names
from dinojax.sharding import gpu_memory

GIB = 2**30
MOST = 2**17  # devices of a target


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device, as jax counts devices: half a TPU7x chip, one of anything else."""

    platform: str  # tpu | gpu | cpu
    memory: float  # bytes
    flops: float  # bfloat16 FLOP/s of a device
    fast: float  # bytes/s out of a device: all links of a torus, or NVLink
    slow: float | None = None  # bytes/s of a device's network card; None: all links are fast
    dims: int = 0  # dimensions of the torus
    per_chip: int = 1  # devices
    machines: int | None = None  # at most; what connects several is known of those with None

    @property
    def share(self) -> float:
        """Of the memory, what a run has for arrays."""
        return gpu_memory.share() if self.platform == "gpu" else 1.0

    @property
    def usable(self) -> float:
        """Bytes of a device in which a step must fit."""
        return self.memory * self.share


CHIPS = {
    "v5e": Chip("tpu", 15.75 * GIB, 197e12, 200e9, dims=2),
    "v5p": Chip("tpu", 95.74 * GIB, 459e12, 600e9, dims=3),
    "v6e": Chip("tpu", 31.25 * GIB, 918e12, 400e9, dims=2),
    "tpu7x": Chip("tpu", 94.75 * GIB, 2307e12 / 2, 300e9, dims=3, per_chip=2),
    "h100": Chip("gpu", 84942979072, 989e12, 450e9, 50e9),
    "h200": Chip("gpu", 151397597184, 989e12, 450e9, 50e9),
    "b200": Chip("gpu", 191514411008, 2250e12, 900e9, 50e9),
    "a100": Chip("gpu", 85100068864, 312e12, 300e9, 25e9),
    "l40s": Chip("gpu", 44.40 * GIB, 362.05e12, 32e9, 6.25e9),
    "rtx4090": Chip("gpu", 23.52 * GIB, 165.2e12, 32e9, 32e9, machines=1),
    "cpu": Chip("cpu", float("inf"), 1e11, 1e10),
}
# Options of a compilation whose program is never run, besides those of a run (compilers.py). GPU:
# the first two keep the compiler from timing kernels on a card, and from searching tiles for every
# softmax and norm, three quarters of the work. QUICK saves time on code.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "tpu": {},
    "gpu": {
        "xla_gpu_enable_triton_gemm": False,
        "xla_disable_hlo_passes": "triton-softmax-rewriter",
        **QUICK,
    },
    "cpu": QUICK,
}


class Card(NamedTuple):
    """What the compiler for a GPU asks of it."""

    capability: str  # of CUDA
    cores: int
    shared: int  # bytes of shared memory per core; a block may take 1 KiB less
    cache: int  # bytes of L2
    bandwidth: int  # bytes/s of memory
    clock: float  # GHz
    fpus: int = 128  # per core
    threads: int = 2048  # per core


CARDS = {
    "h100": Card("9.0", 132, 233472, 52428800, 3352320000000, 1.98),
    "h200": Card("9.0", 132, 233472, 52428800, 4800000000000, 1.98),
    "b200": Card("10.0", 148, 233472, 132644864, 7672320000000, 1.965),
    "a100": Card("8.0", 108, 167936, 41943040, 2039040000000, 1.41, fpus=64),
    "l40s": Card("8.9", 142, 102400, 100663296, 864000000000, 2.52, threads=1536),
    "rtx4090": Card("8.9", 128, 102400, 75497472, 1008000000000, 2.52, threads=1536),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device and how many of them are connected how."""

    name: str  # KIND:SIZES
    chip: Chip
    shape: tuple[int, ...]  # chips of a torus; machines x GPUs; devices

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def num_devices(self) -> int:
        number = self.chip.per_chip
        for size in self.shape:
            number *= size
        return number


def parse(name: str) -> Target:
    """The target of a name, also of such as plan/names.py knows.

    Raises ValueError with the form that its kind takes.
    """
    given = name
    name = names.canonical(given, {kind: chip.platform for kind, chip in CHIPS.items()})
    kind, _, sizes = name.partition(":")
    if kind not in CHIPS:
        kind = kind or given
        raise ValueError(
            f"--target {given!r}: {kind!r} is not one of {', '.join(CHIPS)}; such as v5p:4x8x8, "
            "v5e-64, h100:32x8, a100:8 or cpu:8."
        )
    chip = CHIPS[kind]
    wanted = chip.dims or {"gpu": 2, "cpu": 1}[chip.platform]
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", sizes) or sizes.count("x") + 1 != wanted:
        form = {
            "tpu": "chips along each side of the torus, such as "
            + ("v5p:4x8x8" if wanted == 3 else "v6e:16x16"),
            "gpu": "machines x GPUs, such as h100:32x8",
            "cpu": "devices, such as cpu:8",
        }[chip.platform]
        raise ValueError(f"--target {given!r}: after {kind}: come {form}.")
    shape = tuple(int(size) for size in sizes.split("x"))
    target = Target(name, chip, shape)
    if target.num_devices > MOST:
        raise ValueError(f"--target {given!r}: plans are made for up to {MOST:,} devices.")
    if chip.machines is not None and shape[0] > chip.machines:
        raise ValueError(
            f"--target {given!r}: {kind} is known in one machine alone, such as {kind}:1x8; give a "
            "card of servers for several."
        )
    return target


def replaced(overrides: Sequence[str], changes: Sequence[str]) -> list[str]:
    """`key=value` overrides with those of the same key replaced: a config takes each key once."""
    return list({text.partition("=")[0].strip(): text for text in (*overrides, *changes)}.values())


def environment(target: Target) -> dict[str, str]:
    """Environment variables of a process that compiles for a target; before jax is imported."""
    added = {
        "JAX_PLATFORMS": "cpu",  # so that jax looks for no hardware
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # whatever the target
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if target.chip.platform == "cpu":
        count = f"--xla_force_host_platform_device_count={target.num_devices}"
        others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", _flags())
        added["XLA_FLAGS"] = f"{others} {count}".strip()
    return added


def devices(target: Target) -> list:
    """Its devices, by machine; for all but CPUs they only exist for the compiler."""
    import jax  # not above: the command line is quick without it
    from jax.experimental import topologies

    platform = target.chip.platform
    if platform == "cpu":
        return list(jax.devices("cpu")[: target.num_devices])
    sizes = "x".join(map(str, target.shape))
    if platform == "gpu":
        found = topologies.get_topology_desc(
            "plan", platform="cuda", topology=f"1x{sizes}", target_config=_card(target)
        )
    else:
        found = topologies.get_topology_desc(f"{target.kind}:{sizes}", platform="tpu")
    return sorted(found.devices, key=lambda device: (device.process_index, device.id))


def _card(target: Target) -> str:
    """A description of a GPU for its compiler (GpuTargetConfigProto, text)."""
    card = CARDS[target.kind]
    major, minor = card.capability.split(".")
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {card.threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {card.shared}
  shared_memory_per_block_optin: {card.shared - 1024} core_count: {card.cores}
  fpus_per_core: {card.fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {card.bandwidth} l2_cache_size: {card.cache}
  clock_rate_ghz: {card.clock} device_memory_size: {int(target.chip.memory)}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{target.kind}"
"""


def _flags() -> str:
    return os.environ.get("XLA_FLAGS", "")

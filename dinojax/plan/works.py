"""Programs that run many times over data: compiled for a target, with a closed form and a time.

What `plan curate` and `plan eval` share. The time is modelled: of every program the largest of
what its products, its memory, reading and copying to devices take, as these go on side by side.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from dinojax.ops.flops import count_flops
from dinojax.plan import compiler_output
from dinojax.plan.targets import CARDS, Target
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout

# Assumed, not measured: shares of what the vendors state that products and memory reach; bytes/s
# from storage to a host, and from a host to each of its devices (PCIe 4.0 x16).
PRODUCTS, TRAFFIC = 0.5, 0.7
READING, COPYING = 2e9, 32e9
# bytes/s of a device's memory (docs.cloud.google.com/tpu/docs; of GPUs as targets.CARDS has it).
MEMORY = {"v5e": 819e9, "v5p": 2765e9, "v6e": 1640e9, "tpu7x": 7370e9 / 2, "cpu": 2e10}
PASSES = 6  # products of bfloat16 in one of float32 at the highest precision, on TPUs
BOUNDS = ("products", "memory", "sending", "reading", "copying")
NOTE = (
    f"modelled, not measured: products at {PRODUCTS:.0%} and memory at {TRAFFIC:.0%} of what the "
    f"vendor states, links at their speed, storage at {READING / 1e9:g} GB/s a host, "
    f"{COPYING / 1e9:g} GB/s to a device; the slowest of them counts. Work of the hosts' "
    "processors is left out"
)


@dataclasses.dataclass(frozen=True)
class Form:
    """A program in closed form. flops: over all devices; else bytes of one device and one run."""

    flops: float
    peak: float
    sent: float = 0.0
    traffic: float = 0.0  # of its memory


@dataclasses.dataclass(frozen=True)
class Work:
    """A program, how often it runs, and what it asks of hosts.

    read: bytes that a host reads from storage, copied: that reach one device from its host, each
    in all runs together; host: bytes that one host holds meanwhile.
    """

    step: str
    what: str
    runs: float
    layout: Layout
    function: Callable | None  # jitted; None: the hosts' work alone
    args: tuple
    form: Form
    highest: bool = False  # products of float32 as such
    read: float = 0.0
    copied: float = 0.0
    host: float = 0.0


def plan(works: Sequence[Work], machine: Target) -> list[dict[str, Any]]:
    """A row for each of them: what its compiler finds, the closed form, and the modelled time."""
    return [_planned(work, machine) for work in works]


def _planned(work: Work, machine: Target) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": work.step,
        "what": work.what,
        "runs": work.runs,
        "devices": work.layout.mesh.size,
        "read": work.read,
        "copied": work.copied,
        "host": work.host,
        "form": dataclasses.asdict(work.form),
    }
    if work.function is None:
        times = {"times": {"reading": work.read / READING}, "seconds": work.read / READING}
        return {**row, **times, "bound": "reading" if work.read else "processors", "fits": True}
    print(f"{work.step}: {work.what}", file=sys.stderr, flush=True)
    function: Any = work.function
    with mesh.use(work.layout):
        row["flops"] = count_flops(function, *work.args)
        lowered = function.lower(*work.args)
    row |= compiler_output.kept(lowered, machine, work.layout, None)
    if "memory" in row and machine.chip.platform == "cpu":  # what comes out lies there as well
        memory = row["memory"]
        row["memory"] = {**memory, "peak": memory["peak"] + memory["output"] - memory["alias"]}
    row["fits"] = "memory" in row and row["memory"]["peak"] <= machine.chip.usable
    row["sent"] = sum(one["wire"] for one in row.get("collectives", ()))
    seconds = seconds_of(row, machine, highest=work.highest)
    row["times"] = seconds
    row["bound"] = max(seconds, key=lambda name: seconds[name])
    row["seconds"] = max(seconds.values())
    return row


def seconds_of(row: dict, machine: Target, *, highest: bool) -> dict[str, float]:
    """Of all runs of a program, by what could hold it up (BOUNDS)."""
    runs, chip = row["runs"], machine.chip
    links = chip.fast if machine.chip.platform != "gpu" or machine.shape[0] == 1 else chip.slow
    return {
        "products": runs * row["flops"] / row["devices"] / (PRODUCTS * rate(machine, highest)),
        "memory": runs * row["form"]["traffic"] / (TRAFFIC * bandwidth(machine)),
        "sending": runs * row["sent"] / (links or chip.fast),
        "reading": row["read"] / READING,
        "copying": row["copied"] / COPYING,
    }


def rate(machine: Target, highest: bool) -> float:
    """FLOP/s of products of float32: at the highest precision, or at what XLA takes by itself, one
    pass of bfloat16 on TPUs and TF32, half the rate of bfloat16, on GPUs.
    """
    chip = machine.chip
    if chip.platform == "gpu":
        card = CARDS[machine.kind]
        return card.cores * card.fpus * 2e9 * card.clock if highest else chip.flops / 2
    return chip.flops / PASSES if chip.platform == "tpu" and highest else chip.flops


def bandwidth(machine: Target) -> float:
    """Bytes/s of a device's memory."""
    return CARDS[machine.kind].bandwidth if machine.kind in CARDS else MEMORY[machine.kind]


def num_hosts(layout: Layout) -> int:
    return len({device.process_index for device in layout.mesh.devices.flat})


def shaped(layout: Layout, shape: Sequence[int], dtype: Any, *names: str) -> jax.ShapeDtypeStruct:
    """An array that is not there. names: of its first axes, none = whole on every device."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=layout.sharding(*names))

"""Names of array axes, and the one table from them to device axes: a row set per strategy."""

import math
from collections.abc import Mapping, Sequence

DEVICE_AXES = ("replica", "fsdp", "tensor")

# Names of array axes. None in place of a name: never sharded (biases, norms, scales).
AXES = (
    # Data and activations. image: images, their crops or groups of them, always the first axis;
    # channel: the width of an activation.
    *("image", "token", "pixel", "channel"),
    # Backbone: depth is the axis of stacked blocks, width D, heads A, head_width E, mlp F.
    *("depth", "patch_pixel", "width", "qkv", "heads", "head_width", "mlp"),
    # Projection heads. A kernel hidden x hidden can shard one axis only, so its output side has
    # its own name.
    *("hidden", "hidden_out", "bottleneck", "prototype"),
)


def _rows(image: tuple[str, ...], weight: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {"image": image, "width": weight, "hidden": weight, "prototype": weight}


DATA = ("replica", "fsdp")
# One row set per strategy: the device axes of each array axis. Axes not listed are not sharded.
# Weights are stored like this and gathered where they are used; prototypes stay sharded over the
# tensor axis while their logits are worked with.
TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "dp": {"image": DATA},
    "fsdp": _rows(DATA, ("fsdp",)),
    "hsdp": _rows(DATA, ("fsdp",)),
    # Tensor parallel in the prototypes alone: every device has its own images, and those along
    # `tensor` exchange them to compute logits, losses and Sinkhorn where the prototypes are.
    "fsdp_tp": _rows(DEVICE_AXES, ("tensor", "fsdp")),
}
# Which device axis takes the devices that no other one has.
SPREAD = {"dp": "replica", "fsdp": "fsdp", "hsdp": "fsdp", "fsdp_tp": "fsdp"}
# Which of the keys mesh.replicas and mesh.tensor a strategy reads.
SIZES = {"dp": (), "fsdp": (), "hsdp": ("replicas",), "fsdp_tp": ("replicas", "tensor")}
MOST_TENSOR = 8  # devices of one machine with fast links between them


def grid(
    strategy: str, num_devices: int, *, replicas: int | None = None, tensor: int | None = None
) -> dict[str, int]:
    """Devices along each device axis.

    None: hsdp spreads a copy over the largest power of two that divides the devices, up to the
    square root of twice their number, for sizes of networks divide by powers of two; replicas of
    fsdp_tp are one; tensor is the largest divisor up to MOST_TENSOR.
    Raises one ValueError with all that is wrong: an unknown strategy, sizes that it does not read,
    sizes that do not divide the devices.
    """
    check_strategy(strategy)
    given = {"replicas": replicas, "tensor": tensor}
    faults = [
        f"mesh.{name}={size}, but mesh.strategy={strategy} has no such axis; set it to None, or "
        f"use {' or '.join(row for row, reads in SIZES.items() if name in reads)}"
        for name, size in given.items()
        if size is not None and name not in SIZES[strategy]
    ]
    rest = num_devices
    automatic = {
        "replicas": num_devices // _spread(num_devices) if strategy == "hsdp" else 1,
        "tensor": _largest_divisor(num_devices // (replicas or 1), MOST_TENSOR),
    }
    for name, size in list(given.items()):
        if name not in SIZES[strategy]:
            given[name] = 1
        elif size is None:
            given[name] = automatic[name]
        elif rest % size:
            faults.append(
                f"mesh.{name}={size} does not divide the {rest} devices "
                f"{'left' if rest < num_devices else 'there are'}; use one of {divisors(rest)}"
            )
            given[name] = 1
        rest //= given[name] or 1
    if faults:
        raise ValueError("; ".join(faults) + ".")
    found = {"replica": given["replicas"] or 1, "fsdp": 1, "tensor": given["tensor"] or 1}
    return {**found, SPREAD[strategy]: rest}


def device_axes(strategy: str, name: str | None) -> tuple[str, ...]:
    """The device axes of an array axis."""
    return TABLE[strategy].get(name, ()) if name else ()


def name_faults(strategy: str, names: Sequence[str | None]) -> list[str]:
    """Unknown names, and pairs that want the same device axis."""
    check_strategy(strategy)
    faults = []
    owner: dict[str, str | None] = {}
    for name in names:
        if name is not None and name not in AXES:
            faults.append(f"unknown axis {name!r}, not one of {', '.join(AXES)}")
        for axis in device_axes(strategy, name):
            if axis in owner:
                faults.append(
                    f"axes {owner[axis]!r} and {name!r} both go to {axis} with strategy "
                    f"{strategy}; name one of them None"
                )
            owner[axis] = name
    return faults


def size_faults(
    strategy: str, sizes: Mapping[str, int], shape: Sequence[int], names: Sequence[str | None]
) -> list[str]:
    """What keeps an array of this shape from being sharded. sizes: devices of each device axis."""
    faults = name_faults(strategy, names)
    if len(names) > len(shape):
        faults.append(f"{len(names)} axis names for the shape {tuple(shape)}")
    for i, (size, name) in enumerate(zip(shape, names, strict=False)):
        axes = device_axes(strategy, name)
        parts = math.prod(sizes[axis] for axis in axes)
        if size % parts:
            over = " x ".join(f"{axis}={sizes[axis]}" for axis in axes)
            faults.append(
                f"axis {i} {name!r} = {size} over {over} does not divide; use "
                f"{neighbours(size, parts)}, or {axes[-1]} in {divisors(size)}"
            )
    return faults


def check_strategy(strategy: str) -> None:
    if strategy not in TABLE:
        raise ValueError(f"mesh.strategy={strategy!r} is not one of {', '.join(TABLE)}.")


def neighbours(size: int, parts: int) -> str:
    """The multiples of parts next to a size."""
    below = size // parts * parts
    return " or ".join(str(n) for n in (below, below + parts) if n)


def divisors(number: int) -> str:
    """ "{1, 2, 4}", at most the sixteen smallest."""
    found = [n for n in range(1, number + 1) if number % n == 0] if number else []
    return "{" + ", ".join(map(str, found[:16])) + (", ...}" if len(found) > 16 else "}")


def _spread(num_devices: int) -> int:
    """The largest power of two that divides a number, up to the square root of twice of it."""
    powers = [2**n for n in range(num_devices.bit_length()) if 4**n <= 2 * num_devices]
    return max(power for power in powers if num_devices % power == 0)


def _largest_divisor(number: int, most: int) -> int:
    return max(n for n in range(1, max(most, 1) + 1) if number % n == 0)

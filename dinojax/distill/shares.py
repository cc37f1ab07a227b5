"""Devices given to students, so that all of them finish a step together."""

import dataclasses
import math
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Shares:
    """How many devices each student has, and the idle share of each."""

    devices: dict[str, int]
    idle: dict[str, float]  # of a student's time while the slowest one works, 0 to 1

    def told(self) -> list[str]:
        """A line for each student."""
        return [
            f"{name}: {number} devices, idle {self.idle[name]:.1%}"
            for name, number in self.devices.items()
        ]


def fitting(batch_size: int, group_size: int, accumulate: int, num_devices: int) -> list[int]:
    """Shares on which every device has whole groups of every micro-batch; ascending."""
    groups = batch_size // (group_size * accumulate)
    return [share for share in range(1, num_devices + 1) if groups % share == 0]


def given(
    devices: Mapping[str, int],
    costs: Mapping[str, float],
    valid: Mapping[str, Sequence[int]],
    total: int,
) -> Shares:
    """Shares as the config says. costs: of a step, in any unit; total: devices there are.

    Raises one ValueError for shares that do not divide the batch or do not add up.
    """
    faults = [
        f"{name}: distill.share={share} does not divide the groups of a batch; use one of "
        f"{list(valid[name])}"
        for name, share in devices.items()
        if share not in valid[name]
    ]
    if sum(devices.values()) != total:
        told = " + ".join(f"{name} {share}" for name, share in devices.items())
        faults.append(
            f"shares do not add up: {told} = {sum(devices.values())}, but there are {total} "
            f"devices; computed from cost they would be {_suggested(costs, valid, total)}"
        )
    if faults:
        raise ValueError("\n  ".join(["distill.share:", *faults]))
    return with_idle(devices, costs)


def with_idle(devices: Mapping[str, int], costs: Mapping[str, float]) -> Shares:
    """Shares with what they leave idle, if time is cost over devices."""
    seconds = {name: costs[name] / share for name, share in devices.items()}
    slowest = max(seconds.values())
    return Shares(dict(devices), {name: 1.0 - s / slowest for name, s in seconds.items()})


def computed(costs: Mapping[str, float], valid: Mapping[str, Sequence[int]], total: int) -> Shares:
    """The shares whose slowest student is fastest; among these, those that use fewest devices.

    Raises ValueError where the students do not fit on the devices at all.
    """
    names = list(costs)
    # Best time of the first students on n devices, and the share of the last of them.
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for name in names:
        row: dict[int, tuple[float, int]] = {}
        for used, (slowest, _) in best[-1].items():
            for share in valid[name]:
                time, number = max(slowest, costs[name] / share), used + share
                if number <= total and time < row.get(number, (math.inf, 0))[0]:
                    row[number] = (time, share)
        best.append(row)
    if not best[-1]:
        least = {name: min(valid[name], default=total + 1) for name in names}
        raise ValueError(
            f"{len(names)} students do not fit on {total} devices (at least {least}); use "
            "distill.place=turn, or fewer students."
        )
    number = min(best[-1], key=lambda used: (best[-1][used][0], used))
    devices: dict[str, int] = {}
    for name, row in zip(reversed(names), reversed(best[1:]), strict=True):
        devices[name] = row[number][1]
        number -= devices[name]
    return with_idle({name: devices[name] for name in names}, costs)


def _suggested(costs, valid, total: int) -> str:
    try:
        found = computed(costs, valid, total).devices
    except ValueError:
        return "none: the students do not fit"
    return ", ".join(f"{name} {share}" for name, share in found.items())

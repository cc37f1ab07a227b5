"""What a compiler's log says of arrays that are made whole on every device."""

from __future__ import annotations

import re

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

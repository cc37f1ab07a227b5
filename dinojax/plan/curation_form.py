"""Programs of a curation in closed form: FLOPs, peak bytes of a device, traffic of its memory.

N rows, D width, K centres, C rows of a device at a time, b rows of a block, i bytes of a value.
"""

from typing import Any

from dinojax.curate.assign_program import block_rows
from dinojax.plan import formula
from dinojax.plan.works import Form

WORKSPACE = {"gpu": 2**22}  # bytes that a library of products takes
COSINES = {"cpu": 2, "gpu": 3}  # arrays of them that are alive, elsewhere one


def assign(
    *, rows: int, width: int, centers: int, itemsize: int, platform: str, devices: int, sums: bool
) -> Form:
    """One stretch of rows to their nearest centre, 2 C K D FLOPs.

    Kept: C D i of rows, 4 K D of centres, 8 K D of sums. Alive: a block of rows in float32 and its
    scores, 4 b (D + K); rows as whole numbers while they are summed. XLA for CPUs keeps both at a
    time, and three arrays of scores where there are several blocks; for TPUs it holds the sums
    twice while it adds to them, and no rows in float32. The centres are read once for every block.
    """
    block = block_rows(rows, centers, platform)
    blocks = rows // block
    kept = rows * (width * itemsize + 12) + 4 * centers * (width + 1) + 8 * centers
    kept += 8 * centers * width if sums else 0
    scores, single = 4 * block * centers, 4 * block * width
    if platform == "cpu":
        alive = (3 if blocks > 1 else 1) * scores + single + (8 * rows * width if sums else 0)
    elif platform == "tpu":
        alive = max(scores, (8 * centers * width + 4 * rows * width) if sums else 0)
    else:
        alive = max(scores + single, 4 * rows * width if sums else 0)
        alive += WORKSPACE.get(platform, 0)
    traffic = blocks * (4 * centers * width + 4 * scores) + rows * width * itemsize
    traffic += 24 * rows * width if sums else 0
    return Form(2.0 * rows * centers * width * devices, kept + alive, 0.0, traffic)


def total(*, width: int, centers: int, platform: str, devices: int) -> Form:
    """Sums of all devices.

    Kept: the part of one, 8 K (D + 1) bytes. Alive: all parts' shares, as large again, K filled up
    to what devices divide; XLA holds them twice on CPUs and where K does not divide, on TPUs 1.5
    times, with two halves of every number.
    """
    kept, size = (8 * num * (width + 1) for num in (centers, -(-centers // devices) * devices))
    alive = {"cpu": 2.0, "tpu": 1.5}.get(platform, 1.0 + (centers % devices > 0)) * size
    return Form(0.0, kept + alive, size * (devices - 1) / devices, 3 * size)


def nearer(*, rows: int, width: int, candidates: int, platform: str) -> Form:
    """A further centre: T candidates with all M rows, 2 T M D FLOPs on one device."""
    size = 4 * rows * width
    peak = size + 8 * rows + 4 * candidates * (rows + width) + WORKSPACE.get(platform, 0)
    return Form(2.0 * candidates * rows * width, peak, 0.0, size)


def similar(
    *, queries: int, tile: int, width: int, neighbors: int, devices: int, platform: str
) -> Form:
    """A tile of the pool for Q queries of a device: 2 Q T D FLOPs, 4 Q T bytes of cosines."""
    kept = 4 * (queries + tile) * width + 8 * queries + 8 * queries * neighbors
    cosines = 4 * queries * tile
    alive = COSINES.get(platform, 1) * cosines
    traffic = kept + 4 * cosines
    return Form(2.0 * queries * tile * width * devices, kept + alive, 0.0, traffic)


def forward(spec: Any, *, size: int, images: int, devices: int, params: int, platform: str) -> Form:
    """Features of some images of a device: the weights, the images, and one block's activations.

    On TPUs the weights a second time in bfloat16, which products of float32 are computed in there.
    """
    flops = formula.forward(spec, size) * images * devices
    own = 4 * params + 4 * images * size**2 * spec.channels
    alive = images * formula.activations(spec, size, itemsize=4)
    alive += 2 * params if platform == "tpu" else 0
    return Form(flops, own + alive, 0.0, own)

"""Places of devices in a mesh, and the rows of a batch that a process then has."""

import dataclasses

import numpy as np
import pytest

from dinojax.sharding.topology import arrange, process_rows


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU as jax describes it; four of a square share a process."""

    coords: tuple[int, int, int]
    process_index: int
    id: int
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"
    core_on_chip: int = 0


def torus(columns: int = 4, rows: int = 4) -> list[Chip]:
    return [
        Chip((x, y, 0), (y // 2) * (columns // 2) + x // 2, y * columns + x)
        for y in range(rows)
        for x in range(columns)
    ]


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Sharding of a first axis over devices in this order, as jax tells of one."""

    devices: np.ndarray

    def devices_indices_map(self, shape):
        each = shape[0] // self.devices.size
        return {
            device: (slice(i * each, (i + 1) * each),) for i, device in enumerate(self.devices.flat)
        }


def test_device_axes_go_along_the_sides_of_a_torus():
    placed = arrange(torus()[::-1], (4, 4, 1))
    for line in placed[:, :, 0]:
        assert len({chip.coords[1] for chip in line}) == 1, "one row of the torus"
        assert len({chip.coords[0] for chip in line}) == 4
    assert {chip.process_index for chip in placed[0, :, 0]} == {0, 1}


@pytest.mark.parametrize(
    "chips", [torus()[:7], [dataclasses.replace(c, platform="cpu") for c in torus()]]
)
def test_other_devices_go_process_after_process(chips):
    placed = arrange(chips, (len(chips), 1, 1))
    processes = [chip.process_index for chip in placed.flat]
    assert processes == sorted(processes)
    assert {chip.id for chip in placed.flat} == {chip.id for chip in chips}


def test_every_row_of_a_batch_belongs_to_one_process():
    sharded = Sharded(arrange(torus(), (4, 4, 1)))
    parts = [process_rows(sharded, 32, process) for process in range(4)]  # type: ignore[arg-type]
    assert sorted(np.concatenate(parts)) == list(range(32))
    assert parts[0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11], "two devices of each of two rows"

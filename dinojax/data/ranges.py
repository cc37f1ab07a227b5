"""What becomes of values of more than 8 bits: the range used and the levels left, in words."""

import collections
import dataclasses

import numpy as np

from dinojax.data.decode import DecodeError
from dinojax.data.example import Source
from dinojax.data.header import Header, ReadOptions, check_size, read_header
from dinojax.data.mixture import parts_of
from dinojax.data.stored import LEVELS, resolved_range, stored_values, to_bytes

NUM_LOOKED = 8  # images of a source that a run looks at, spread over it
FEW_LEVELS = 128  # fewer are told with the range to set


@dataclasses.dataclass
class Use:
    """The stored values of some images above 8 bits; those of two disjoint parts add up."""

    images: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    present: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(LEVELS, bool))
    num_beyond: int = 0  # values outside the range they are read with
    num_values: int = 0
    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    ranges: set[tuple[float, ...]] = dataclasses.field(default_factory=set)

    def __iadd__(self, other: "Use") -> "Use":
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.present = self.present | other.present
        self.images += other.images
        self.num_beyond += other.num_beyond
        self.num_values += other.num_values
        self.kinds += other.kinds
        self.ranges |= other.ranges
        return self

    @property
    def levels(self) -> int:
        """Different bytes that the values become."""
        return int(self.present.sum())

    def to_json(self) -> dict:
        if not self.images:
            return {"images": 0}
        return {
            "images": self.images,
            "used": [self.low, self.high],
            "read_as_0_to_255": sorted(self.ranges),
            "levels": self.levels,
            "share_beyond": self.num_beyond / max(1, self.num_values),
        }


def look_at(data: bytes, options: ReadOptions) -> Use:
    """What one file uses; nothing of a file of 8 bits. Raises what decoding raises."""
    header, image = read_header(data)
    if not header.is_wide or (header.format == "PPM" and data[1:2] in b"23"):
        return Use()
    check_size(header, options.max_pixels)
    values_HWC = stored_values(data, header, image)
    return of_values(values_HWC, header, options)


def of_values(values_HWC: np.ndarray, header: Header, options: ReadOptions) -> Use:
    ends_2C = resolved_range(header, options.value_range, values_HWC)
    bytes_HWC = to_bytes(values_HWC, header, options.value_range)
    finite = values_HWC[np.isfinite(values_HWC)] if values_HWC.dtype.kind == "f" else values_HWC
    inside = (values_HWC >= ends_2C[0]) & (values_HWC <= ends_2C[1])
    return Use(
        images=1,
        low=float(finite.min()) if finite.size else float("inf"),
        high=float(finite.max()) if finite.size else float("-inf"),
        present=np.bincount(bytes_HWC.ravel(), minlength=LEVELS) > 0,
        num_beyond=int(inside.size - inside.sum()),
        num_values=int(values_HWC.size),
        kinds=collections.Counter({str(header): 1}),
        ranges={tuple(ends_2C.T.ravel().tolist())},
    )


def told(use: Use, options: ReadOptions, key: str = "data.value_range") -> list[str]:
    """A line on the values above 8 bits, where there are any, and what to do about them."""
    if not use.images:
        unused = f"{key} is set, and no image seen has more than 8 bits: nothing reads it"
        return [unused] if options.value_range else []
    ends = " or ".join(_pairs(ends) for ends in sorted(use.ranges))
    line = (
        f"{', '.join(use.kinds)}: values {use.low:g} to {use.high:g} in the images seen; {ends} "
        f"become 0 to 255: {use.levels} of {LEVELS} levels left"
    )
    if use.num_beyond:
        line += f", {use.num_beyond / use.num_values:.2%} of the values beyond them"
    is_wider = any((use.low, use.high) not in set(_ends(ends)) for ends in use.ranges)
    if use.levels < FEW_LEVELS and use.low < use.high and is_wider and not options.value_range:
        line += f". --set '{key}=({use.low:g}, {use.high:g})' keeps more"
    return [line]


def _ends(ends: tuple[float, ...]) -> list[tuple[float, float]]:
    """LOW, HIGH of each channel, or of all."""
    return list(zip(ends[::2], ends[1::2], strict=True))


def _pairs(ends: tuple[float, ...]) -> str:
    pairs = [f"{low:g} to {high:g}" for low, high in _ends(ends)]
    return pairs[0] if len(set(pairs)) == 1 else f"({'; '.join(pairs)})"


def range_notes(source: Source) -> list[str]:
    """`told` of a few images of each part of a source. Images that cannot be read are passed by."""
    notes = []
    for name, ids in parts_of(source).items():
        use, options = Use(), source.read_options(ids.start)
        for index in sorted(set(np.linspace(ids.start, ids.stop - 1, NUM_LOOKED).astype(int))):
            try:
                use += look_at(source.encoded(int(index)).data, options)
            except (DecodeError, OSError):
                continue
            except Exception:  # of a damaged file; decoding it will tell
                continue
        key = f"data.mixture_ranges of {name}" if name else "data.value_range"
        notes += [f"{name}: {line}" if name else line for line in told(use, options, key)]
    return notes


def batch_notes(source: Source, batch_size: int) -> list[str]:
    """A line where a batch takes more images than there are."""
    num = len(source)
    if num >= batch_size:
        return []
    return [
        f"{num} images are fewer than one batch of {batch_size}: every step sees some of them more "
        "than once. Lower batch_size, or give more images"
    ]

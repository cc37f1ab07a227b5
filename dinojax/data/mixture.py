"""Several sources as one: which image of which source comes at which position. No state, no table.

A step's batch is either of one source alone or a mix; the images of a mix come from several
sources (DINOv3, arXiv:2508.10104, section on data: 10 % of the batches are ImageNet-1k alone).
Both are drawn as cards from a deck of 10,000 in which every kind has its share, shuffled anew for
every deck. So shares are exact over whole decks, and how many cards of a kind came before a
position takes no more than one deck to count, however far the run is. That count is the position
within the source, whose own epochs follow dinojax/data/order.py.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from dinojax.data.encoded import fingerprint
from dinojax.data.example import Encoded, Example, Source
from dinojax.data.header import ReadOptions
from dinojax.data.order import image_index

NUM_CARDS = 10_000  # of a deck; part of the meaning of a seed, as the names below are
STEPS, IMAGES = "mixture steps", "mixture images"


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of a mixture. name: in the log and the key of its order; never a path."""

    name: str
    source: Source
    weight: float  # share of the images of mixed batches, relative to the other parts
    alone: float  # share of the batches that hold this source alone


@dataclasses.dataclass(frozen=True)
class Deck:
    """Endless draws of kinds 0, 1, ...: `cards` of each kind in every 10,000 draws, shuffled."""

    key: int
    cards: tuple[int, ...]

    def kinds(self, position: int, num: int) -> np.ndarray:
        """The kinds of the next `num` draws after `position` draws: int64 [num]."""
        decks = range(position // NUM_CARDS, (position + num - 1) // NUM_CARDS + 1)
        shuffled = np.concatenate([_shuffled(self, number) for number in decks])
        first = position % NUM_CARDS
        return shuffled[first : first + num]

    def counts(self, position: int) -> np.ndarray:
        """How many of the first `position` draws were of each kind: int64 [kinds]."""
        number, rest = divmod(position, NUM_CARDS)
        begun = np.bincount(_shuffled(self, number)[:rest], minlength=len(self.cards))
        return number * np.array(self.cards, np.int64) + begun


@functools.lru_cache(maxsize=8)
def _shuffled(deck: Deck, number: int) -> np.ndarray:
    """The kinds of one deck in the order they are drawn: int64 [10,000]."""
    positions = number * NUM_CARDS + np.arange(NUM_CARDS, dtype=np.int64)
    cards = image_index(deck.key, positions, NUM_CARDS)
    kinds = np.searchsorted(np.cumsum(deck.cards), cards, side="right")
    kinds.setflags(write=False)  # shared by all threads
    return kinds


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A Source of all images of its parts, one part after the other; without labels."""

    parts: tuple[Part, ...]
    class_names: tuple[str, ...] = ()

    @property
    def labels(self) -> np.ndarray | None:
        return None

    @property
    def channels(self) -> int:
        return self.parts[0].source.channels

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{part.name}: {note}" for part in self.parts for note in part.source.notes)

    @property
    def fingerprint(self) -> str:
        return fingerprint((part.name, part.source.fingerprint) for part in self.parts)

    @property
    def local_files(self) -> tuple[str, ...]:
        return tuple(
            place for part in self.parts for place in getattr(part.source, "local_files", ())
        )

    def __len__(self) -> int:
        return sum(len(part.source) for part in self.parts)

    def __getitem__(self, index: int) -> Example:
        return self.read(index)

    def read(self, index: int, box_size: int | None = None) -> Example:
        part, ids = self.part_of(index)
        return part.source.read(index - ids.start, box_size)

    def encoded(self, index: int) -> Encoded:
        part, ids = self.part_of(index)
        return part.source.encoded(index - ids.start)

    def read_options(self, index: int) -> ReadOptions:
        part, ids = self.part_of(index)
        return part.source.read_options(index - ids.start)

    def ids(self) -> dict[str, range]:
        """Name of each part -> the ids of its images."""
        ends = np.cumsum([len(part.source) for part in self.parts]).tolist()
        return {
            part.name: range(end - len(part.source), end)
            for part, end in zip(self.parts, ends, strict=True)
        }

    def part_of(self, index: int) -> tuple[Part, range]:
        """The part an image belongs to, with the ids of all images of that part."""
        for part, ids in zip(self.parts, self.ids().values(), strict=True):
            if index in ids:
                return part, ids
        raise IndexError(f"image {index} of a mixture of {len(self)} images")

    def batch_ids(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        """Ids int64 [B] of the global batch that begins after `position` images.

        Raises ValueError unless `position` is a whole number of batches: which batches hold one
        source alone depends on their size.
        """
        step = _num_steps(position, batch_size)
        alone = int(self._steps(seed).kinds(step, 1)[0])  # 0: a mix, else number of the part + 1
        before = self.num_drawn(seed, position, batch_size)
        mixed = int(self._steps(seed).counts(step)[0]) * batch_size
        kinds_B = self._images(seed).kinds(mixed, batch_size) if not alone else alone - 1
        kinds_B = np.broadcast_to(kinds_B, batch_size)
        ids_B = np.empty(batch_size, np.int64)
        for number, (name, ids) in enumerate(self.ids().items()):
            rows = np.flatnonzero(kinds_B == number)
            places = before[name] + np.arange(len(rows), dtype=np.int64)
            ids_B[rows] = ids.start + image_index(_key(seed, name), places, len(ids))
        return ids_B

    def num_drawn(self, seed: int, position: int, batch_size: int) -> dict[str, int]:
        """Name of each part -> how many of the first `position` images came from it."""
        mixed, *alone = self._steps(seed).counts(_num_steps(position, batch_size)).tolist()
        of_mixed = self._images(seed).counts(mixed * batch_size).tolist()
        return {
            part.name: batch_size * batches + images
            for part, batches, images in zip(self.parts, alone, of_mixed, strict=True)
        }

    def _steps(self, seed: int) -> Deck:
        alone = [part.alone for part in self.parts]
        mixed = max(0.0, round(1 - sum(alone), 9))  # 0.9 + 0.1 may miss 1 by a hair
        return Deck(_key(seed, STEPS), cards(["mixed", *self.ids()], [mixed, *alone]))

    def _images(self, seed: int) -> Deck:
        weights = [part.weight for part in self.parts]
        if not any(weights):
            weights = [1.0] * len(weights)  # there are no mixed batches; never drawn
        return Deck(_key(seed, IMAGES), cards([*self.ids()], weights))

    def check(self) -> None:
        """Raises ValueError for shares that make no mixture and for parts that do not fit."""
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"data.mixture: its sources are {names}; give some, each once.")
        for part in self.parts:
            if not (0 <= part.weight < np.inf and 0 <= part.alone <= 1):
                raise ValueError(
                    f"data.mixture: {part.name} has weight={part.weight} and alone={part.alone}; "
                    "use a weight of at least 0 and alone between 0 and 1."
                )
        alone = sum(part.alone for part in self.parts)
        if alone > 1 + 1e-9:
            raise ValueError(f"data.mixture: the shares alone sum to {alone:.3g}, more than 1.")
        if alone < 1 - 1e-9 and not any(part.weight for part in self.parts):
            raise ValueError(
                f"data.mixture: {1 - alone:.3g} of the batches are mixed, but every weight is 0."
            )
        self._steps(0), self._images(0)
        for part in self.parts:
            if part.source.channels != self.channels:
                raise ValueError(
                    f"data.mixture: {part.name} has {part.source.channels} channels and "
                    f"{self.parts[0].name} {self.channels}; set image.channels and convert."
                )


def batch_ids(source: Source, *, seed: int, position: int, batch_size: int) -> np.ndarray:
    """Ids int64 [B] of the global batch of any source that begins after `position` images."""
    if isinstance(source, Mixture):
        return source.batch_ids(seed, position, batch_size)
    return image_index(seed, position + np.arange(batch_size, dtype=np.int64), len(source))


def num_drawn(source: Source, *, seed: int, position: int, batch_size: int) -> dict[str, int]:
    """Images drawn from each part of a mixture so far; empty for any other source."""
    if not isinstance(source, Mixture):
        return {}
    return source.num_drawn(seed, position, batch_size)


def peers(source: Source, index: int) -> range:
    """Ids of the images that may take the place of an image: those of its own source."""
    return source.part_of(index)[1] if isinstance(source, Mixture) else range(len(source))


def parts_of(source: Source) -> dict[str, range]:
    """Name of each part of a mixture -> ids of its images; {"": all} for any other source."""
    return source.ids() if isinstance(source, Mixture) else {"": range(len(source))}


def told(source: Source, drawn: dict[str, int]) -> list[str]:
    """A line for each part of a mixture: images it has, and how many of them were drawn."""
    total = max(1, sum(drawn.values()))
    return [
        f"{name}: {drawn[name]:,} drawn from {len(ids):,} images, {drawn[name] / total:.1%} of "
        f"all, {drawn[name] / len(ids):,.2f} epochs"
        for name, ids in parts_of(source).items()
        if drawn
    ]


def cards(names: Sequence[str], shares: Sequence[float]) -> tuple[int, ...]:
    """Cards of each kind in a deck: shares in ten-thousandths, by largest remainder.

    Raises ValueError for a share above 0 that would have no card.
    """
    exact = np.array(shares, np.float64) * NUM_CARDS / sum(shares)
    found = np.floor(exact + 1e-9).astype(np.int64)  # 0.29 * 10_000 is a little less than 2,900
    largest = np.argsort(found - exact, kind="stable")[: NUM_CARDS - found.sum()]
    found[largest] += 1
    for name, share, count in zip(names, shares, found, strict=True):
        if share > 0 and not count:
            raise ValueError(
                f"data.mixture: the share of {name}, {share / sum(shares):.2g}, is below "
                f"1/{NUM_CARDS:,} and would never be drawn; raise it or leave the source out."
            )
    return tuple(found.tolist())


def _key(seed: int, name: str) -> int:
    """Another seed for every name, so that adding a source reorders no other."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def _num_steps(position: int, batch_size: int) -> int:
    step, rest = divmod(position, batch_size)
    if rest:
        raise ValueError(
            f"a mixture draws whole batches, and {position} images are no whole number of batches "
            f"of {batch_size}; continue with the batch_size that the run began with."
        )
    return step

"""What every source of images gives: one Example per index, at full size or reduced to a box."""

import dataclasses
from typing import Protocol

import numpy as np

from dinojax.data.header import ReadOptions


@dataclasses.dataclass(frozen=True)
class Example:
    """One image as stored: pixels uint8 [H, W, C], class index or None, and a name for messages."""

    pixels: np.ndarray
    label: int | None
    name: str
    captions: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One image as an image file: its bytes, class index or None, and a name for messages."""

    data: bytes
    label: int | None
    name: str
    captions: tuple[str, ...] = ()


class Source(Protocol):
    """A finite, ordered set of images that can be read in any order, from any thread or process."""

    @property
    def channels(self) -> int:
        """Colour channels C of every image."""

    @property
    def labels(self) -> np.ndarray | None:
        """Class index of every image, int32 [N], or None without labels."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indexes; empty without labels."""

    @property
    def fingerprint(self) -> str:
        """Changes when the set of images or their order changes."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out when the source was opened, a sentence each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The image at full size."""

    def read(self, index: int, box_size: int | None = None) -> Example:
        """The image, where given no larger than a box of `box_size` pixels on each side."""

    def encoded(self, index: int) -> Encoded:
        """The image as a file, for those who copy, count or compare files."""

    def read_options(self, index: int) -> ReadOptions:
        """How the file of an image becomes pixels."""

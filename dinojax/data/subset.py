"""Some images of a source, as a source of their own."""

import dataclasses

import numpy as np

from dinojax.data.encoded import fingerprint
from dinojax.data.example import Encoded, Example, Source
from dinojax.data.header import ReadOptions


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a source, in an order of their own, also more than once."""

    source: Source
    indexes: np.ndarray

    local_files = property(lambda self: getattr(self.source, "local_files", ()))

    @property
    def channels(self) -> int:
        return self.source.channels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.source.labels is None else self.source.labels[self.indexes]

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def fingerprint(self) -> str:
        return fingerprint([(self.source.fingerprint,), *((int(i),) for i in self.indexes)])

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: int) -> Example:
        return self.source[int(self.indexes[index])]

    def read(self, index: int, box_size: int | None = None) -> Example:
        return self.source.read(int(self.indexes[index]), box_size)

    def encoded(self, index: int) -> Encoded:
        return self.source.encoded(int(self.indexes[index]))

    def read_options(self, index: int) -> ReadOptions:
        return self.source.read_options(int(self.indexes[index]))

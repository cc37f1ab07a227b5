"""Sources of named image files of one folder, without labels, and some images of a source."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.encoded import EncodedSource, fingerprint
from dinojax.data.example import Encoded, Example, Source
from dinojax.data.folder import FolderFiles
from dinojax.data.header import ReadOptions


def listed(folder: Path, files: Sequence[str], channels: int) -> EncodedSource:
    """In the order given. Raises ConfigError naming the first file that is not there."""
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(files)} images are not there, the first: "
            f"{folder / missing[0]}."
        )
    own = FolderFiles(root=str(folder), names=tuple(files), labels=None)
    mark = fingerprint((name, (folder / name).stat().st_size) for name in files)
    return EncodedSource(own, channels, (), mark)


@dataclasses.dataclass(frozen=True, eq=False)
class Picked:
    """The images of a source at some indexes, without labels."""

    source: Source
    indexes: np.ndarray
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    channels = property(lambda self: self.source.channels)
    labels = property(lambda self: None)
    local_files = property(lambda self: getattr(self.source, "local_files", ()))

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

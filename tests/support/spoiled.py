"""A source of which some images cannot be read."""

import dataclasses

import numpy as np

from dinojax.data.decode import DecodeError
from dinojax.data.example import Example


@dataclasses.dataclass(frozen=True, eq=False)
class Spoiled:
    """Image i is filled with i; those of `bad` cannot be read."""

    size: int = 40
    bad: tuple = (3, 4, 17)
    channels = 1
    labels = None
    class_names = ()
    fingerprint = ""

    def __len__(self):
        return self.size

    def read(self, index, box_size=None):
        if index in self.bad:
            kind = OSError if index % 2 else DecodeError
            raise kind(f"cannot decode {index}.jpg: truncated")
        return Example(np.full((2, 2, 1), index, np.uint8), None, str(index))

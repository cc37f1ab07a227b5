"""Captions of images: how sources keep them, which of several a step takes, what is refused.

An image has any number of captions. A step takes one of them, a function of seed and position
alone; an image without one counts as one that cannot be read (quarantine.py).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dinojax.data import fields
from dinojax.data.example import Example, Source
from dinojax.data.order import pick

NUM_LOOKED_AT = 1000  # images whose captions are read before a run starts
COLUMNS = ("caption", "captions", "text")  # of tables, and fields of .json beside an image
MEMBERS = ("txt", "json")  # files beside an image in a tar
NUM_TOLD = 3  # faults that a message quotes


def of_value(value: Any, where: str) -> tuple[str, ...]:
    """The captions in a cell or field: a text, or a list of texts; None and empty ones are none.

    Raises ValueError, beginning with `where`, for anything else.
    """
    if value is None:
        return ()
    texts = list(value) if isinstance(value, (list, tuple)) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where}: a caption is {text!r:.60}, which is no text.")
    return tuple(text.strip() for text in texts if text.strip())


def of_member(data: bytes, extension: str, where: str) -> tuple[str, ...] | None:
    """The captions in a file beside an image: of .txt one a line, of .json a field of COLUMNS.

    None for a .txt that is no UTF-8. Raises ValueError, beginning with `where`, for bad JSON.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if extension == "txt":
            return None
        raise ValueError(f"{where} cannot be read: {error}.") from error
    if extension == "txt":
        return of_value(text.splitlines(), where)
    try:
        content = fields.parse(text, where="its text")
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {error}.") from error
    return of_fields(content, where)


def of_fields(content: Any, where: str) -> tuple[str, ...]:
    """The captions in the first field of COLUMNS that an object has."""
    if not isinstance(content, dict):
        return ()
    names = [name for name in COLUMNS if name in content]
    return of_value(content[names[0]], where) if names else ()


@dataclasses.dataclass(frozen=True)
class CaptionReader:
    """One caption of an image as token ids; runs in worker processes."""

    tokenize: Callable[[Sequence[str]], np.ndarray]
    seed: int

    def __call__(self, example: Example, position: int) -> np.ndarray:
        """int32 [N]; position: images consumed before this one."""
        number = pick(self.seed, position, len(example.captions))
        return self.tokenize([example.captions[number]])[0]


def check(source: Source, encode: Callable[[str], list[int]], context: int) -> tuple[str, ...]:
    """Notes on the captions of the first images, before anything is trained.

    encode: ids of a text without its ends. Raises ValueError, with examples, where more than half
    of the images have no caption.
    """
    num = min(len(source), NUM_LOOKED_AT)
    lacking, long, total = [], 0, 0
    for index in np.linspace(0, len(source) - 1, num).astype(int).tolist():
        try:
            image = source.encoded(index)
        except OSError:
            continue  # the quarantine's business
        lacking += [image.name] if not image.captions else []
        total += len(image.captions)
        long += sum(len(encode(text)) > context - 2 for text in image.captions)
    if len(lacking) > num / 2:
        raise ValueError(
            f"{len(lacking)} of {num} images looked at have no caption, such as "
            f"{', '.join(lacking[:NUM_TOLD])}. A tar has them in .txt or .json beside an image, a "
            f"table in a column {' or '.join(COLUMNS)}; see docs/text.md."
        )
    notes = []
    if lacking:
        notes.append(
            f"{len(lacking)} of {num} images looked at have no caption, such as {lacking[0]}: "
            "they are replaced like images that cannot be read (data.max_bad_share)"
        )
    if long:
        notes.append(
            f"{long:,} of {total:,} captions looked at have more than text.context={context} "
            "tokens and are cut"
        )
    return tuple(notes)

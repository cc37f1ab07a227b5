"""Data sets that TFDS prepared as ArrayRecord. TensorFlow is not needed and never imported."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinojax.data.decode import PLAIN, ReadOptions
from dinojax.data.encoded import EncodedSource, check_one_decodes, checked_path, fingerprint
from dinojax.data.example import Encoded, Source

INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsFiles:
    """One split. image, label: names of features; label is None without classes."""

    records: Sequence
    split: str
    image: str
    label: str | None

    def __len__(self) -> int:
        return len(self.records)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """Read once, when somebody asks: TFDS keeps them beside the images."""
        if self.label is None:
            return None
        return np.array([self._record(i)[self.label] for i in range(len(self))], np.int32)

    def encoded(self, index: int) -> Encoded:
        record = self._record(index)
        label = None if self.label is None else int(record[self.label])
        return Encoded(data=record[self.image], label=label, name=f"{self.split} {index}")

    def _record(self, index: int) -> dict:
        try:
            return self.records[index]
        except RuntimeError as error:
            raise OSError(f"cannot read {self.split} {index}: {error}") from error


def tfds(
    *,
    path: str,
    channels: int,
    split: str = "train",
    key: str = "data.path",
    options: ReadOptions = PLAIN,
) -> Source:
    """The source of one split of the data set in the folder NAME/VERSION (or NAME/CONFIG/VERSION).

    Raises FileNotFoundError, and ValueError if the folder holds no data set in ArrayRecord with
    that split and exactly one image per example.
    """
    where, found = f"{key}={path}", checked_path(path, key, "the version folder of a TFDS data set")
    if not os.path.isfile(os.path.join(found, INFO)):
        raise ValueError(f"{where} has no {INFO}; {_nearest(found)}")
    import tensorflow_datasets  # half a second, for those who use it

    builder = tensorflow_datasets.builder_from_directory(found)
    info = builder.info
    if split not in info.splits:
        raise ValueError(f"{where} has no split {split!r}; it has {', '.join(info.splits)}.")
    if info.file_format.value != "array_record":
        raise ValueError(
            f"{where} is stored as {info.file_format.value}, which needs TensorFlow; prepare it "
            "with file_format='array_record'."
        )
    image, label = _features(info.features, tensorflow_datasets.features, where)
    decoders = {image: tensorflow_datasets.decode.SkipDecoding()}
    source = EncodedSource(
        files=TfdsFiles(
            records=builder.as_data_source(split=split, decoders=decoders),
            split=split,
            image=image,
            label=label,
        ),
        channels=channels,
        class_names=tuple(info.features[label].names) if label is not None else (),
        fingerprint=fingerprint(
            [(info.full_name, split, info.splits[split].num_bytes)]
            + [(length,) for length in info.splits[split].shard_lengths]
        ),
        options=options,
    )
    return check_one_decodes(source, where)


def _nearest(folder: str) -> str:
    for above, _, names in os.walk(folder):
        if INFO in names:
            return f"give {above}."
    return "give the folder NAME/VERSION that `download_and_prepare` filled."


def _features(features: Any, kinds: Any, where: str) -> tuple[str, str | None]:
    """Names of the only image and of the only class label."""
    images = [name for name, kind in features.items() if isinstance(kind, kinds.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, kinds.ClassLabel)]
    if len(images) != 1:
        raise ValueError(
            f"{where} has {len(images)} image features ({', '.join(images)}); one is needed. "
            "Write the images you want to a manifest (data.source=manifest)."
        )
    return images[0], labels[0] if len(labels) == 1 else None

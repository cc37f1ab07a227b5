"""Labelled videos: a list of them, and frames of one at chosen moments.

A list has a line `PATH CLASS` for each video (of a CSV: path,label). A path, relative to the list,
is a folder of frames (FRAME.jpg in the order of their names, perhaps with timestamps.npy in
seconds) or a video file, which PyAV decodes (pip install 'dinojax[video]').
"""

import csv
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.decode import EXTENSIONS, DecodeError, decode
from dinojax.data.encoded import extension_of, fingerprint
from dinojax.data.storage import read_file

TIMES = "timestamps.npy"
VIDEOS = ("mp4", "avi", "webm", "mkv", "mov")


@dataclasses.dataclass(frozen=True)
class Clips:
    """Videos with classes. As a source of evaluations it tells what it is of, and no image."""

    paths: tuple[Path, ...]
    labels: np.ndarray  # int32 [N]
    class_names: tuple[str, ...]
    fingerprint: str
    channels: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> "Frames":
        """The frames of a video. Raises DecodeError, naming the file, without any."""
        path = self.paths[index]
        return Folder(path, self.channels) if path.is_dir() else File(path, self.channels)

    def part(self, indexes: np.ndarray) -> "Clips":
        mark = fingerprint([(self.fingerprint,), *((int(index),) for index in indexes)])
        paths = tuple(self.paths[index] for index in indexes)
        return dataclasses.replace(self, paths=paths, labels=self.labels[indexes], fingerprint=mark)


class Folder:
    """Frames that lie in a folder; `times` [T] in 0..1 of the video's length."""

    def __init__(self, path: Path, channels: int):
        names = [entry.name for entry in path.iterdir() if extension_of(entry.name) in EXTENSIONS]
        if not names:
            raise DecodeError(f"{path} holds no frame.")
        self._files = [path / name for name in sorted(names, key=os.fsencode)]
        self._channels = channels
        self.times = _shares(_timestamps(path / TIMES, len(names)))

    def read(self, number: int) -> np.ndarray:
        """uint8 [H, W, C]."""
        path = self._files[number]
        return decode(read_file(str(path)), name=str(path), channels=self._channels)


class File:
    """Frames of a video file; those asked for are decoded at one pass and kept."""

    def __init__(self, path: Path, channels: int):
        self._path, self._channels = path, channels
        self.times = _shares(np.array([time for time, _ in self._decoded(wanted=set())]))
        self._kept: dict[int, np.ndarray] = {}

    def prepare(self, numbers) -> None:
        """Decode these frames."""
        wanted = {int(number) for number in numbers} - self._kept.keys()
        if wanted:
            frames = enumerate(self._decoded(wanted))
            self._kept |= {number: frame for number, (_, frame) in frames if frame is not None}

    def read(self, number: int) -> np.ndarray:
        self.prepare([number])
        return self._kept[number]

    def _decoded(self, wanted: set[int]):
        """(seconds, pixels or None) of every frame, pixels of those that are wanted."""
        av = _av(self._path)
        mode = {1: "gray", 3: "rgb24"}[self._channels]
        try:
            with av.open(str(self._path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    seconds = float(number if frame.time is None else frame.time)
                    found = frame.to_ndarray(format=mode) if number in wanted else None
                    yield seconds, found if found is None or found.ndim == 3 else found[..., None]
        except (av.FFmpegError, IndexError) as error:
            raise DecodeError(f"{self._path}: this video cannot be read: {error}") from error


Frames = Folder | File


def _av(path: Path) -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path}: video files need the package av; run: pip install 'dinojax[video]', or give"
            " folders of frames."
        ) from None
    return av


def _timestamps(path: Path, num: int) -> np.ndarray:
    if not path.is_file():
        return np.arange(num, dtype=np.float64)
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DecodeError(f"{path} cannot be read: {error}") from error
    if found.shape != (num,) or np.any(np.diff(found) < 0):
        raise DecodeError(
            f"{path} has times {found.shape} for {num} frames; give one each, rising."
        )
    return found.astype(np.float64)


def _shares(seconds_T: np.ndarray) -> np.ndarray:
    if not len(seconds_T):
        raise DecodeError("a video has no frame.")
    span = seconds_T[-1] - seconds_T[0]
    return (seconds_T - seconds_T[0]) / (span if span > 0 else 1.0)


def open_clips(path: str, *, channels: int, key: str, classes: tuple[str, ...] = ()) -> Clips:
    """The videos of a list; `key` is what messages name.

    classes: those that there may be, in order; () = those of the list, as numbers if all are, else
    bytewise. Raises ConfigError for a list that is not there, lines without a class, classes that
    are not among `classes`, and videos that are not there.
    """
    place, where = Path(os.path.expanduser(path)), f"{key}={path}"
    try:
        lines = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    is_csv = place.suffix == ".csv"
    rows = list(csv.reader(lines)) if is_csv else [line.rsplit(maxsplit=1) for line in lines]
    start = 1 if is_csv and rows[:1] == [["path", "label"]] else 0
    numbered = [(number, row) for number, row in enumerate(rows[start:], start + 1) if row]
    for number, row in numbered:
        if len(row) != 2 or not row[1].strip():
            raise ConfigError(f"{where}, line {number}: {' '.join(row)!r} is no path with a class.")
    if not numbered:
        raise ConfigError(f"{where} lists no video.")
    own = {row[1].strip() for _, row in numbered}
    as_numbers = all(name.isdecimal() for name in own)
    names = classes or tuple(sorted(own, key=int if as_numbers else os.fsencode))
    if strange := sorted(own - set(names)):
        raise ConfigError(f"{where}: the class {strange[0]!r} is not among those learnt from.")
    found = tuple(place.parent / row[0].strip() for _, row in numbered)
    for (number, _), video in zip(numbered, found, strict=True):
        if not video.exists():
            raise ConfigError(f"{where}, line {number}: there is no {video}.")
        if video.is_file() and extension_of(video.name) not in VIDEOS:
            raise ConfigError(
                f"{where}, line {number}: {video} is neither a folder of frames nor a file"
                f" {', '.join(VIDEOS)}."
            )
    labels = np.array([names.index(row[1].strip()) for _, row in numbered], np.int32)
    mark = fingerprint(
        (row[0], row[1], _size(video)) for (_, row), video in zip(numbered, found, strict=True)
    )
    return Clips(found, labels, names, mark, channels)


def _size(video: Path) -> int:
    """Bytes of a file, frames of a folder."""
    return video.stat().st_size if video.is_file() else sum(1 for _ in video.iterdir())

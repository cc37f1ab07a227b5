"""Videos as folders of frames with masks of objects: DAVIS, YouTube-VOS, MOSE, or one's own.

One's own: `images/VIDEO/FRAME.jpg` with `maps/VIDEO/FRAME.png` of object numbers (0 = background),
for the first frame at least. Public ones: `LAYOUT:ROOT` (layouts.py).
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.decode import EXTENSIONS, DecodeError
from dinojax.data.encoded import EncodedSource, check_one_decodes, extension_of, fingerprint
from dinojax.data.folder import FolderFiles
from dinojax.eval import layout_files
from dinojax.eval.map_folder import IMAGES, MAPS, has_maps, read_map

VOID = 255  # in masks: background to what is propagated and to the official semi-supervised score


@dataclasses.dataclass(frozen=True)
class Video:
    """frames: their indexes in the source. maps: of each frame, None where nothing is marked."""

    name: str
    frames: range
    maps: tuple[Path | None, ...]

    @property
    def marked(self) -> list[int]:
        """Numbers of the frames with a mask."""
        return [number for number, path in enumerate(self.maps) if path is not None]

    def ids(self, number: int, size: tuple[int, int]) -> np.ndarray:
        """Object numbers int64 [H, W] of a marked frame, void as 0.

        Raises DecodeError, naming the file, for a mask of another size than its frame.
        """
        path = self.maps[number]
        assert path is not None
        ids_HW = read_map(path).astype(np.int64)
        if ids_HW.shape != size:
            raise DecodeError(
                f"{path}: the mask is {ids_HW.shape[0]} x {ids_HW.shape[1]}, its frame"
                f" {size[0]} x {size[1]}; they must be of one size."
            )
        return np.where(ids_HW == VOID, 0, ids_HW)


def open_videos(path: str, *, channels: int, key: str) -> tuple[EncodedSource, list[Video]]:
    """(all frames, videos in the order of their names); `key` is what messages name.

    Raises ConfigError for a folder of another layout, a video without frames, and one whose first
    frame has no mask.
    """
    if layout_files.is_layout(path):
        files = layout_files.find(path, key=key, kind="videos", learn=False)
        root, notes = files.root, files.notes
        pairs = [
            (Path(images).name, root / images, root / maps)
            for images, maps in zip(files.images, files.maps, strict=True)
        ]
    elif has_maps(path):
        root, notes = Path(path), ()
        names = sorted(entry.name for entry in (root / IMAGES).iterdir() if entry.is_dir())
        pairs = [(name, root / IMAGES / name, root / MAPS / name) for name in names]
    else:
        raise ConfigError(
            f"{key}={path} must hold {IMAGES}/VIDEO/FRAME.jpg and {MAPS}/VIDEO/FRAME.png, or name"
            " a layout: davis2017:ROOT, youtube_vos:ROOT, mose:ROOT."
        )
    videos: list[Video] = []
    frames: list[str] = []
    for name, images, maps in pairs:
        own = _frames(images, f"{key}={path}")
        masks = [maps / f"{frame.stem}.png" for frame in own]
        found = tuple(mask if mask.is_file() else None for mask in masks)
        if found[0] is None:
            raise ConfigError(f"{key}={path}: the first frame of {name} has no mask {masks[0]}.")
        videos.append(Video(name, range(len(frames), len(frames) + len(own)), found))
        frames += [str(frame.relative_to(root)) for frame in own]
    if not videos:
        raise ConfigError(f"{key}={path}: {root / IMAGES} holds no folder of frames.")
    mark = fingerprint((name, (root / name).stat().st_size) for name in frames)
    listed = FolderFiles(str(root), tuple(frames), None)
    source = EncodedSource(listed, channels, (), mark, notes=notes)
    return check_one_decodes(source, f"{key}={path}"), videos


def _frames(folder: Path, where: str) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{where}: {folder} is no folder of frames.")
    names = [entry.name for entry in folder.iterdir() if extension_of(entry.name) in EXTENSIONS]
    if not names:
        raise ConfigError(f"{where}: {folder} holds no frame.")
    return [folder / name for name in sorted(names, key=os.fsencode)]

"""Evaluation on revisited Oxford and Paris (Radenovic et al., arXiv:1803.11285), no training.

Below `revisited.path` lie roxford5k/ and rparis6k/, or one of them, as their authors publish them:
NAME/gnd_NAME.pkl and NAME/jpg/*.jpg. Nothing is downloaded. DINOv3's setting (arXiv:2508.10104,
appendix D.8): the long side at 224 pixels, filled up to a square, cls tokens, cosine.
"""

import dataclasses
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.encoded import fingerprint
from dinojax.data.example import Encoded, Example, Source
from dinojax.data.header import ReadOptions
from dinojax.eval import met, retrieval
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.listed import listed
from dinojax.eval.network import Network
from dinojax.weights.preprocess import Preprocessing

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "path": {"default": "", "says": "folder of roxford5k/ and rparis6k/; [ours]"},
    "size": {
        "default": 224,
        "says": "pixels of the long side, a square; [P]",
        "limits": (1, 16_384),
    },
    "crop_queries": {
        "default": False,
        "says": "to their boxes, as the benchmark; False = whole, as DINO; [ours]",
    },
}
SIZES = {"roxford5k": (70, 4993), "rparis6k": (70, 6322)}  # queries, images, as published
ROLES = {"easy": retrieval.EASY, "hard": retrieval.HARD, "junk": retrieval.JUNK}


@dataclasses.dataclass(frozen=True, eq=False)
class Cropped:
    """A source whose images are cut to boxes (left, top, right, bottom), in pixels."""

    source: Source
    boxes: tuple[tuple[float, ...], ...]

    channels = property(lambda self: self.source.channels)
    local_files = property(lambda self: getattr(self.source, "local_files", ()))
    labels = property(lambda self: None)
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        return fingerprint([(self.source.fingerprint, str(self.boxes))])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        found = self.source[index]
        left, top, right, bottom = (round(side) for side in self.boxes[index])
        part = found.pixels[max(top, 0) : bottom, max(left, 0) : right]
        return dataclasses.replace(found, pixels=part)

    def read(self, index: int, box_size: int | None = None) -> Example:
        return self[index]

    def encoded(self, index: int) -> Encoded:
        return self.source.encoded(index)

    def read_options(self, index: int) -> ReadOptions:
        return self.source.read_options(index)


@dataclasses.dataclass(frozen=True)
class Places:
    """One of the two data sets."""

    name: str
    images: Source
    queries: Source
    roles_QN: np.ndarray  # what each image is to each query: EASY, HARD, JUNK, or 0


@dataclasses.dataclass(frozen=True)
class Revisited:
    """Fields are the keys of the section `revisited`, their data sets opened."""

    places: tuple[Places, ...]
    transform: Preprocessing
    batch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(source for p in self.places for source in (p.images, p.queries))

    def measure(self, network: Network) -> Measured:
        """Columns revisited/NAME-medium and -hard (mAP in percent), and medium, hard: the means."""
        values: dict[str, float] = {}
        samples, told = {}, []
        for place in self.places:
            similarities_QN = (
                self._unit(network, place.queries) @ self._unit(network, place.images).T
            )
            ranks_QN = retrieval.ranking(similarities_QN)
            for protocol in ("medium", "hard"):
                found = retrieval.evaluate(ranks_QN, place.roles_QN, protocol)
                column = f"revisited/{place.name}-{protocol}"
                values[column] = 100.0 * found.mean
                rows = found.average_precisions
                samples[column] = 100.0 * rows[np.isfinite(rows)]
            told.append(_told(place))
        for protocol in ("medium", "hard"):
            own = [values[f"revisited/{place.name}-{protocol}"] for place in self.places]
            values[f"revisited/{protocol}"] = float(np.mean(own))
        num = sum(len(place.queries) for place in self.places)
        return Measured(values, num=num, told="; ".join(told), samples=samples)

    def _unit(self, network: Network, source: Source) -> np.ndarray:
        transform: Any = self.transform  # of other sizes than that of the labelled images
        found = network.extract(source, transform, ("cls",), batch_size=self.batch_size)
        if found["bad"]:
            raise ValueError(f"an image cannot be read: {next(iter(found['bad'].values()))}")
        return met.unit(found["cls"].astype(np.float64))


def _told(place: Places) -> str:
    counts = len(place.queries), len(place.images)
    told = f"{place.name}: {counts[0]} queries in {counts[1]} images"
    if counts != SIZES[place.name]:
        told += f" (published: {SIZES[place.name][0]} in {SIZES[place.name][1]})"
    return told


class _Plain(pickle.Unpickler):
    """Of lists, dictionaries, numbers and strings alone: no file runs code."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_truth(path: Path) -> Mapping[str, Any]:
    """{"imlist", "qimlist", "gnd"} of a gnd_NAME.pkl, checked.

    Raises ConfigError naming the file for one that is absent, holds other things than plain data,
    or points to images that it does not list.
    """
    try:
        found = _Plain(io.BytesIO(path.read_bytes())).load()
        names = [str(name) for name in found["imlist"]]
        queries = [str(name) for name in found["qimlist"]]
        truth = [{role: [int(i) for i in row[role]] for role in ROLES} for row in found["gnd"]]
        boxes = [tuple(float(side) for side in row["bbx"]) for row in found["gnd"]]
    except OSError as error:
        raise ConfigError(f"revisited.path: {path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # a damaged pickle may raise any
        raise ConfigError(f"{path} is no ground truth of this benchmark: {error!r}.") from None
    listed = {index for row in truth for indexes in row.values() for index in indexes}
    if len(truth) != len(queries) or not names or not listed <= set(range(len(names))):
        raise ConfigError(
            f"{path} has {len(queries)} queries, {len(truth)} rows of truth, {len(names)} images "
            f"and points to image {max(listed, default=None)}: it is damaged."
        )
    return {"imlist": names, "qimlist": queries, "gnd": truth, "boxes": boxes}


def open_places(root: Path, name: str, *, channels: int, crop_queries: bool) -> Places:
    """One data set. Raises ConfigError naming the first image that is not there."""
    truth = read_truth(root / name / f"gnd_{name}.pkl")
    folder = root / name / "jpg"
    images, whole = (
        listed(folder, [f"{file}.jpg" for file in truth[key]], channels)
        for key in ("imlist", "qimlist")
    )
    queries: Source = Cropped(whole, tuple(truth["boxes"])) if crop_queries else whole
    roles_QN = np.zeros((len(queries), len(images)), np.int8)
    for query, row in enumerate(truth["gnd"]):
        for role, indexes in row.items():
            roles_QN[query, indexes] = ROLES[role]
    return Places(name, images, queries, roles_QN)


def build(section, setting: Setting) -> Revisited | None:
    """The row `revisited` of the table; None without a path."""
    if not section.path:
        return None
    root = Path(section.path)
    names = [name for name in SIZES if (root / name).is_dir()]
    if not names:
        raise ConfigError(f"revisited.path={root} holds none of {', '.join(SIZES)}.")
    if section.size % setting.patch_size:
        raise ConfigError(
            f"revisited.size={section.size} is no multiple of a patch's side, "
            f"{setting.patch_size} pixels."
        )
    config, own = setting.config, setting.transform
    places = tuple(
        open_places(root, name, channels=config.image.channels, crop_queries=section.crop_queries)
        for name in names
    )
    transform = Preprocessing(
        section.size,
        (section.size, section.size),
        own.normalize,
        own.mean or None,
        own.std or None,
        rule="inside",
    )
    return Revisited(places, transform, config.knn.batch_size)

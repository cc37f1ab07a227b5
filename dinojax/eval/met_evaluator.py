"""Evaluation on the Met (Ypsilantis et al., arXiv:2202.01747): which exhibit a photograph shows.

Below `met.path` lie images/ and ground_truth/{MET_database,valset,testset}.json as published.
Nothing is downloaded. cls tokens of images near their own shape are whitened by the exhibits; the
nearest exhibits vote, their number and temperature chosen on the validation queries.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data import fields
from dinojax.data.example import Source
from dinojax.data.header import read_header
from dinojax.data.storage import read_file
from dinojax.data.subset import Subset
from dinojax.eval import met
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.listed import listed
from dinojax.eval.neighbors import nearest
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import values_of
from dinojax.weights.preprocess import Preprocessing

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "path": {"default": "", "says": "folder of images/ and ground_truth/; [ours]"},
    "size": {
        "default": 512,
        "says": "pixels of the long side, both rounded to patches; [P] D.8",
        "limits": (8, 16_384),
    },
    "whiten": {"default": 512, "says": "principal axes, at most; [R]", "limits": (1, 65_536)},
    "batch_size": {"default": 32, "says": "images per pass; [ours]", "limits": (1, 1_048_576)},
}
LISTS = {"MET_database": 397_121, "valset": None, "testset": None}  # images, where published
IDS = ("id", "MET_id")  # of the exhibit; an image without one shows none


@dataclasses.dataclass(frozen=True)
class Part:
    """Images with the number of their exhibit, met.DISTRACTOR = none."""

    images: Source
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Met:
    """Exhibits, queries that choose, and queries that are judged."""

    exhibits: Part
    val: Part
    test: Part
    section: Any
    transform: Any
    patch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.exhibits.images, self.val.images, self.test.images

    def measure(self, network: Network) -> Measured:
        """Columns met/gap, gap_minus (without distractors) and accuracy, in percent."""
        bank_ND, val_QD, test_QD = (self._features(network, s) for s in self.sources)
        axes = met.fit_whitening(bank_ND, min(self.section.whiten, bank_ND.shape[1]))
        bank_ND = axes(bank_ND)
        k = min(max(met.NEIGHBORS), len(bank_ND))
        found = []
        for features_QD in (val_QD, test_QD):
            similarities, indexes = nearest(bank_ND, axes(features_QD), k, normalize=False)
            found.append((similarities, self.exhibits.labels[indexes]))
        num_classes = len(np.unique(self.exhibits.labels))
        count, temperature, _ = met.tune(*found[0], self.val.labels, num_classes=num_classes)
        near = (rows[:, :count] for rows in found[1])
        classes, confidences = met.classify(*near, temperature=temperature, num_classes=num_classes)
        scores = met.scores(classes, confidences, self.test.labels)
        rows = np.stack([classes, confidences, self.test.labels], axis=1)
        told = f"{len(self.test.labels)} queries, {len(bank_ND)} exhibits' images"
        told += f"; k={count}, temperature={temperature:g}"
        return Measured(
            {f"met/{name}": 100.0 * value for name, value in scores.items()},
            num=len(rows),
            told=told,
            samples={"met/gap": rows},
            statistic=lambda rows: 100.0 * met.global_average_precision(*rows.T),
        )

    def _features(self, network: Network, source: Source) -> np.ndarray:
        """cls [N, D]: images of one shape together, each stretched to whole patches."""
        shapes = [self._shape(source, index) for index in range(len(source))]
        found: np.ndarray | None = None
        for shape in sorted(set(shapes)):
            indexes = np.array([i for i, own in enumerate(shapes) if own == shape])
            transform: Any = Preprocessing(
                None,
                shape,
                self.transform.normalize,
                self.transform.mean or None,
                self.transform.std or None,
                rule="exact",
            )
            size = self.section.batch_size
            part = network.extract(Subset(source, indexes), transform, ("cls",), batch_size=size)
            if part["bad"]:
                raise ValueError(f"an image cannot be read: {next(iter(part['bad'].values()))}")
            if found is None:
                found = np.zeros((len(source), part["cls"].shape[1]), np.float32)
            found[indexes] = part["cls"]
        assert found is not None
        return found

    def _shape(self, source: Source, index: int) -> tuple[int, int]:
        encoded = source.encoded(index)
        try:
            header, _ = read_header(encoded.data)
        except Exception as error:  # a damaged file may raise any
            raise ValueError(f"{encoded.name} cannot be read: {error}") from error
        scale = self.section.size / max(header.height, header.width)
        patch = self.patch_size
        height, width = (
            max(patch, patch * round(side * scale / patch))
            for side in (header.height, header.width)
        )
        return height, width


def open_part(root: Path, name: str, channels: int) -> Part:
    """A list of the ground truth; a length that is not the published one is a note of its source.

    Raises ConfigError naming the file for one of another content, and the first image that is not
    there.
    """
    path = root / "ground_truth" / f"{name}.json"
    try:
        rows = fields.parse(read_file(str(path), max_bytes=None), where=path)
    except OSError as error:
        raise ConfigError(f"met.path: {path} cannot be read: {error}") from None
    rows = fields.checked(rows, [dict], name="the whole", where=path)
    files = [fields.field(row, "path", str, where=path) for row in rows]
    ids = [next((int(row[key]) for key in IDS if row.get(key) is not None), None) for row in rows]
    labels = np.array([met.DISTRACTOR if number is None else number for number in ids])
    if not files or (name == "MET_database" and np.any(labels == met.DISTRACTOR)):
        raise ConfigError(f"met.path: {path} lists no image, or an exhibit without a number.")
    source = listed(root / "images", files, channels)
    if LISTS[name] not in (None, len(files)):
        note = f"Met, {name}: {len(files):,} images found, {LISTS[name]:,} published"
        source = dataclasses.replace(source, notes=(note,))
    return Part(source, labels)


def build(section, setting: Setting) -> Met | None:
    section = values_of(section, KEYS)
    if not section.path:
        return None
    root, channels = Path(section.path), setting.config.image.channels
    exhibits, val, test = (open_part(root, name, channels) for name in LISTS)
    return Met(exhibits, val, test, section, setting.transform, setting.patch_size)

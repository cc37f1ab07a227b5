"""The dense metric: which of four images side by side does a patch belong to?

Four images make one mosaic, a quarter each. Every patch of the query mosaics is classified by
weighted k-NN among the patches of the bank mosaics; right is the class of its own quarter. A patch
that describes its place is right; one that has come to describe the whole image is not, however
good the cls token. Where images have no labels, each is a class of its own, and the queries are
the same images mirrored, in other company.

It needs no segmented images and one forward pass, and says nothing about fine boundaries: a number
of this project, to compare checkpoints of one run, never to be set beside a published mIoU.
"""

import dataclasses
from pathlib import Path

import numpy as np

from dinojax.config import Config, ConfigError
from dinojax.data.example import Source
from dinojax.data.quarantine import KNN_FILE, read_all
from dinojax.data.sources import open_knn_sources
from dinojax.distributed import process_group
from dinojax.eval.features import Embed, EvalTransform
from dinojax.eval.knn import knn_classes, shared_labels

QUARTERS = 4
SEED = 4517  # of which images meet in a mosaic; part of the metric's meaning
NAME = "dense/mosaic"  # its column in metrics.jsonl


@dataclasses.dataclass
class Mosaics:
    """Mosaics of a bank and of queries, read once and kept as pixels."""

    bank: Source
    query: Source
    transform: EvalTransform
    patch_size: int
    num: int  # mosaics of each
    neighbors: int
    temperature: float
    batch_size: int
    max_bad_share: float  # of images that cannot be read and are replaced
    bad_list: Path | None = None  # file that lists them

    def __post_init__(self):
        self._made: tuple | None = None

    def accuracy(self, embed: Embed, params: dict) -> float:
        """Percent of the queries' patches that are told right."""
        if self._made is None:
            self._made = self._make()
        (bank, bank_labels), (query, query_labels), num_classes = self._made
        found = knn_classes(
            self._patches(embed, params, bank),
            bank_labels,
            self._patches(embed, params, query),
            neighbors=self.neighbors,
            temperature=self.temperature,
            num_classes=num_classes,
        )
        return 100.0 * float(np.mean(found == query_labels))

    def _make(self) -> tuple:
        rng = np.random.RandomState(SEED)  # whose numbers are the same in every release
        if self.query is self.bank:
            few = rng.permutation(len(self.bank))[: QUARTERS * self.num]
            orders = (np.arange(len(few)), rng.permutation(len(few)))
            labels = [np.arange(len(few), dtype=np.int32)] * 2
            picked = [few[order] for order in orders]
            classes = [labels[0][order] for order in orders]
            num_classes = len(few)
        else:
            bank_labels, query_labels, num_classes = shared_labels(self.bank, self.query)
            both = (self.bank, self.query)
            picked = [rng.permutation(len(s))[: QUARTERS * self.num] for s in both]
            classes = [bank_labels[picked[0]], query_labels[picked[1]]]
        mirrored = (False, self.query is self.bank)
        made = [
            self._mosaics(source, indexes, names, mirror)
            for source, indexes, names, mirror in zip(
                (self.bank, self.query), picked, classes, mirrored, strict=True
            )
        ]
        return (*made, num_classes)

    def _mosaics(self, source: Source, indexes, classes, mirror: bool):
        """(pixels [N, H, W, C], class of every patch [N * P])."""
        side = max(self.transform.crop_size // self.patch_size // 2, 1)  # patches of a quarter
        size = side * self.patch_size
        resize = max(size, round(self.transform.resize_size * size / self.transform.crop_size))
        small = dataclasses.replace(self.transform, crop_size=size, resize_size=resize)
        num = len(indexes) // QUARTERS
        examples = read_all(
            source,
            indexes[: num * QUARTERS],
            what="mosaics of the " + ("query" if source is self.query else "bank"),
            max_share=self.max_bad_share,
            path=self.bad_list if process_group.current().is_main else None,
        )
        parts = [small(example.pixels) for example in examples]
        parts_NQHWC = np.stack(parts).reshape(num, 2, 2, size, size, -1)
        if mirror:
            parts_NQHWC = parts_NQHWC[..., ::-1, :]
        pixels = parts_NQHWC.swapaxes(2, 3).reshape(num, 2 * size, 2 * size, -1)
        of_quarter = np.asarray(classes[: num * 4]).reshape(num, 2, 1, 2, 1)
        of_patch = np.broadcast_to(of_quarter, (num, 2, side, 2, side))
        return np.ascontiguousarray(pixels), of_patch.reshape(-1)

    def _patches(self, embed: Embed, params: dict, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Patches [N * P, D], in batches of one size so that one program is compiled."""
        found = []
        for first in range(0, len(pixels_NHWC), self.batch_size):
            part = pixels_NHWC[first : first + self.batch_size]
            fill = self.batch_size - len(part)
            whole = np.pad(part, ((0, fill), (0, 0), (0, 0), (0, 0)))
            found.append(process_group.fetch(embed(params, whole)[2])[: len(part)])
        patches_NPD = np.concatenate(found)
        return patches_NPD.reshape(-1, patches_NPD.shape[-1])


def open_mosaics(
    config: Config, source: Source, num: int, directory: Path | None = None
) -> Mosaics | None:
    """The dense metric on labelled images if there are any, else on those of training.

    directory: of the run, which receives a list of images that cannot be read.
    """
    if not num:
        return None
    found = open_knn_sources(config.data, config.knn, channels=config.image.channels)
    bank, query = found or (source, source)
    if (least := min(len(bank), len(query))) < QUARTERS:
        raise ConfigError(f"knn.mosaics={num} puts {QUARTERS} images into one; there are {least}.")
    return Mosaics(
        bank,
        query,
        transform=EvalTransform.from_sections(image=config.image, knn=config.knn),
        patch_size=config.model.patch_size,
        num=num,
        neighbors=config.knn.neighbors,
        temperature=config.knn.temperature,
        batch_size=min(num, config.knn.batch_size),
        max_bad_share=config.data.max_bad_share,
        bad_list=directory / KNN_FILE if directory else None,
    )

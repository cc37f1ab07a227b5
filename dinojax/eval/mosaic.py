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

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.data.quarantine import read_all
from dinojax.distributed import process_group
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.features import Embed, EvalTransform
from dinojax.eval.knn import knn_classes, shared_labels
from dinojax.eval.network import Network

QUARTERS = 4
SEED = 4517  # of which images meet in a mosaic; part of the metric's meaning
NAME = "dense/mosaic"  # its column


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

    @property
    def sources(self) -> tuple[Source, Source]:
        return self.bank, self.query

    def accuracy(self, embed: Embed, params: dict) -> float:
        """Percent of the queries' patches that are told right."""
        return self.measure(Network(embed, params)).values[NAME]

    def measure(self, network: Network) -> Measured:
        """The column dense/mosaic: percent of the queries' patches that are told right."""
        if self._made is None:
            self._made = self._make()
        (bank, bank_labels), (query, query_labels), num_classes = self._made
        found = knn_classes(
            self._patches(network, bank),
            bank_labels,
            self._patches(network, query),
            neighbors=self.neighbors,
            temperature=self.temperature,
            num_classes=num_classes,
        )
        # Patches of one mosaic are not independent, so that whole mosaics are drawn again.
        right_NP = 100.0 * (found == query_labels).reshape(len(query), -1)
        value = 100.0 * float(np.mean(found == query_labels))
        told = f"{len(bank)} mosaics in the bank, {len(query)} queries"
        return Measured({NAME: value}, num=len(found), told=told, samples={NAME: right_NP})

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

    def _patches(self, network: Network, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Patches [N * P, D], in batches of one size so that one program is compiled."""
        found = []
        for first in range(0, len(pixels_NHWC), self.batch_size):
            part = pixels_NHWC[first : first + self.batch_size]
            fill = self.batch_size - len(part)
            whole = np.pad(part, ((0, fill), (0, 0), (0, 0), (0, 0)))
            found.append(process_group.fetch(network(whole)[2])[: len(part)])
        patches_NPD = np.concatenate(found)
        return patches_NPD.reshape(-1, patches_NPD.shape[-1])


def build(section, setting: Setting) -> Mosaics | None:
    """The row `mosaics`: on labelled images if there are any, else on those of training."""
    sources = setting.labelled()
    if sources is None:
        if setting.images is None:
            return None
        sources = (setting.images(),) * 2
    bank, query = sources
    num = section.mosaics
    if (least := min(len(bank), len(query))) < QUARTERS:
        raise ConfigError(f"knn.mosaics={num} puts {QUARTERS} images into one; there are {least}.")
    return Mosaics(
        bank,
        query,
        transform=setting.transform,
        patch_size=setting.patch_size,
        num=num,
        neighbors=section.neighbors,
        temperature=section.temperature,
        batch_size=min(num, section.batch_size),
        max_bad_share=setting.max_bad_share,
        bad_list=setting.bad_list,
    )

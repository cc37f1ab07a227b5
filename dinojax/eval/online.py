"""Evaluation during and after training: k-NN of the ema, against random weights and raw pixels."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dinojax.data.example import Source
from dinojax.eval.features import FEATURES, EvalTransform, extract, selected
from dinojax.eval.knn import knn_accuracy, shared_labels

# (backbone parameters, images [B, H, W, C]) -> cls [B, D], mean of patches [B, D], patches
Embed = Callable[[dict, np.ndarray], tuple]


@dataclasses.dataclass(frozen=True)
class Knn:
    """Weighted k-NN of `query` in `bank`; the fields are the keys of the `knn` section."""

    bank: Source
    query: Source
    transform: EvalTransform
    features: str
    neighbors: int
    temperature: float
    batch_size: int

    def accuracy(self, embed: Embed, params: dict) -> dict[str, float]:
        """Percent of queries whose class is right, by kind of features: cls, patches, both."""
        found = [self._extract(lambda x: embed(params, x)[:2], s) for s in (self.bank, self.query)]
        return {name: self._percent(*(selected(part, name) for part in found)) for name in FEATURES}

    def raw_accuracy(self) -> float:
        """The same percentage for the normalised pixels themselves: what a network must beat."""

        def flat(images_BHWC):
            pixels = images_BHWC.reshape(len(images_BHWC), -1)
            return pixels, pixels[:, :1]

        found = [self._extract(flat, source)["cls"] for source in (self.bank, self.query)]
        return self._percent(*found)

    def _extract(self, apply, source: Source) -> dict:
        return extract(apply, source, transform=self.transform, batch_size=self.batch_size)

    def _percent(self, bank_ND, queries_MD) -> float:
        bank_labels, query_labels, num_classes = shared_labels(self.bank, self.query)
        share = knn_accuracy(
            bank_ND,
            bank_labels,
            queries_MD,
            query_labels,
            neighbors=self.neighbors,
            temperature=self.temperature,
            num_classes=num_classes,
        )
        return 100.0 * share


def learned(knn: Knn, embed: Embed, *, random: dict, ema: dict) -> dict[str, float]:
    """Percentages {"raw", "random", "ema"}: pixels, the best features of random weights, the ema.

    random, ema: backbone parameters. The ema is measured by `knn.features` alone; random weights
    get the best of all kinds, so that the difference is never a matter of choosing.
    """
    return {
        "raw": knn.raw_accuracy(),
        "random": max(knn.accuracy(embed, random).values()),
        "ema": knn.accuracy(embed, ema)[knn.features],
    }


def build_knn(sources: tuple[Source, Source], *, image, knn) -> Knn:
    """From (bank, query) and the config sections `image` and `knn`."""
    bank, query = sources
    shared_labels(bank, query)  # refuses classes that the bank lacks before anything is computed
    return Knn(
        bank=bank,
        query=query,
        transform=EvalTransform.from_sections(image=image, knn=knn),
        features=knn.features,
        neighbors=knn.neighbors,
        temperature=knn.temperature,
        batch_size=knn.batch_size,
    )

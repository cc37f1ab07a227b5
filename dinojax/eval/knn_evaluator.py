"""Evaluation during and after training: k-NN of the ema, against random weights and raw pixels."""

import dataclasses
import logging
from pathlib import Path

from dinojax.data.example import Source
from dinojax.data.quarantine import KNN_FILE, Skipped, note_skipped
from dinojax.distributed import process_group
from dinojax.eval.features import FEATURES, Embed, EvalTransform, extract, selected
from dinojax.eval.knn import knn_accuracy, shared_labels

log = logging.getLogger(__name__)


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
    max_bad_share: float  # of images that cannot be read
    bad_list: Path | None = None  # file that lists them

    def accuracy(self, embed: Embed, params: dict) -> dict[str, float]:
        """Percent of queries whose class is right, by kind of features: cls, patches, both.

        With "skipped", the number of images of both sources that could not be read, if there are.
        """
        found = self._extract(lambda x: embed(params, x)[:2])
        skipped = sum(len(part["bad"]) for part in found)
        percent = {
            name: self._percent(found, [selected(part, name) for part in found])
            for name in FEATURES
        }
        return {**percent, "skipped": skipped} if skipped else percent

    def raw_accuracy(self) -> float:
        """The same percentage for the normalised pixels themselves: what a network must beat."""

        def flat(images_BHWC):
            pixels = images_BHWC.reshape(len(images_BHWC), -1)
            return pixels, pixels[:, :1]

        found = self._extract(flat, shared=False)
        return self._percent(found, [part["cls"] for part in found])

    def _extract(self, apply, *, shared: bool = True) -> list[dict]:
        """What `extract` finds in the bank and in the queries; what cannot be read is listed."""
        found = []
        for name, source in (("bank", self.bank), ("query", self.query)):
            part = extract(
                apply,
                source,
                transform=self.transform,
                batch_size=self.batch_size,
                shared=shared,
            )
            found.append(part)
            note_skipped(
                [Skipped(name, index, reason) for index, reason in part["bad"].items()],
                what=f"k-NN without some of the {name}",
                num_read=len(source),
                max_share=self.max_bad_share,
                path=self.bad_list if process_group.current().is_main else None,
            )
        return found

    def _percent(self, found: list[dict], features: list) -> float:
        bank_labels, query_labels, num_classes = shared_labels(self.bank, self.query)
        share = knn_accuracy(
            features[0],
            bank_labels[found[0]["kept"]],
            features[1],
            query_labels[found[1]["kept"]],
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
    found = knn.accuracy(embed, random)
    return {
        "raw": knn.raw_accuracy(),
        "random": max(found[name] for name in FEATURES),
        "ema": knn.accuracy(embed, ema)[knn.features],
    }


def build_knn(
    sources: tuple[Source, Source],
    *,
    image,
    knn,
    max_bad_share: float,
    directory: Path | None = None,
) -> Knn:
    """From (bank, query) and the config sections `image` and `knn`.

    max_bad_share: of images that cannot be read, data.max_bad_share. directory: of the run, which
    receives a list of them.
    """
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
        max_bad_share=max_bad_share,
        bad_list=directory / KNN_FILE if directory else None,
    )

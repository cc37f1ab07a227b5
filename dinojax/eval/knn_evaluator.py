"""Evaluation by k-NN: of the ema in training and after, against random weights and raw pixels."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.data.example import Source
from dinojax.data.quarantine import Skipped, note_skipped
from dinojax.distributed import process_group
from dinojax.eval.answers import answers_of
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.features import FEATURES, Embed, EvalTransform, extract, selected
from dinojax.eval.knn import knn_classes, shared_labels
from dinojax.eval.network import Network

log = logging.getLogger(__name__)

# The section `knn`, which the mosaics share (mosaic.py).
KEYS = {
    "every": {
        "default": 12_500,
        "says": "steps; also at step 0 and at the end; None = never; [R]",
        "optional": "int",
        "limits": (1, None),
    },
    "bank": {
        "default": "",
        "says": 'labelled folder to vote (class = first sub-folder); "" = data.path; [ours]',
    },
    "query": {
        "default": "",
        "says": 'labelled folder to classify; "" = the source\'s own split, if any; [ours]',
    },
    "crop_size": {"default": 224, "says": "pixels at evaluation; [R]", "limits": (1, 16_384)},
    "resize_size": {
        "default": 256,
        "says": "pixels of the short side before the centre crop; [R]",
        "limits": (1, 16_384),
    },
    "neighbors": {
        "default": 20,
        "says": "k; [R] one of 10, 20, 100, 200",
        "limits": (1, None),
    },
    "temperature": {"default": 0.07, "says": "of the vote; [R]", "limits": (1e-6, None)},
    "mosaics": {
        "default": 0,
        "says": "of 4 images, for the dense metric dense/mosaic; 0 = none; [ours]",
        "limits": (0, 1_048_576),
    },
    "alarm": {
        "default": None,
        "says": "share of step 0's result that may be lost, None = no alarm; [ours]",
        "optional": "float",
        "limits": (0, 1),
    },
    "alarm_stops": {
        "default": False,
        "says": "the alarm also ends the run, with exit code 3; [ours]",
    },
    "features": {
        "default": "cls",
        "says": "cls [R] | patches (mean) | both",
        "choices": ("cls", "patches", "both"),
    },
    "batch_size": {
        "default": 256,
        "says": "images per forward pass; [ours]",
        "limits": (1, 1_048_576),
    },
}
# The papers judge at 512 pixels, the released code and DINOv2 at 224 (docs/evaluation.md).
PROTOCOLS = {
    "paper": {"crop_size": 512, "resize_size": 512, "neighbors": 20, "temperature": 0.07},
    "released": {"crop_size": 224, "resize_size": 256, "neighbors": 20, "temperature": 0.07},
    "dinov2": {"crop_size": 224, "resize_size": 256, "neighbors": 20, "temperature": 0.07},
}


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

    @property
    def sources(self) -> tuple[Source, Source]:
        return self.bank, self.query

    def measure(self, network: Network) -> Measured:
        """Columns knn/cls, knn/patches, knn/both: percent of queries whose class is right.

        With knn/skipped, the number of images of both sources that could not be read, if there are.
        """
        found = self._extract(network)
        skipped = sum(len(part["bad"]) for part in found)
        right = {
            f"knn/{name}": self._are_right(found, [selected(part, name) for part in found])
            for name in FEATURES
        }
        values = {name: 100.0 * float(np.mean(right_M)) for name, right_M in right.items()}
        answers = answers_of(self.bank, self.query).of(found[1]["kept"])
        values |= answers.more("knn", right[f"knn/{self.features}"])
        return Measured(
            {**values, "knn/skipped": skipped} if skipped else values,
            num=len(found[1]["kept"]),
            told=f"{len(self.bank)} images in the bank, {len(self.query)} queries",
            samples={name: 100.0 * right_M for name, right_M in right.items()},
        )

    def accuracy(self, embed: Embed, params: dict) -> dict[str, float]:
        """The same values without the prefix: cls, patches, both and perhaps skipped."""
        values = self.measure(Network(embed, params)).values
        return {name.removeprefix("knn/"): value for name, value in values.items()}

    def raw_accuracy(self) -> float:
        """The same percentage for the normalised pixels themselves: what a network must beat."""

        def flat(images_BHWC):
            pixels = images_BHWC.reshape(len(images_BHWC), -1)
            return pixels, pixels[:, :1]

        found = self._extract(None, flat)
        return 100.0 * float(np.mean(self._are_right(found, [part["cls"] for part in found])))

    def _extract(self, network: Network | None, apply=None) -> list[dict]:
        """Features of the bank and of the queries; what cannot be read is listed.

        apply: in place of a network, a function of images that needs no devices.
        """
        found = []
        how: dict[str, Any] = {"transform": self.transform, "batch_size": self.batch_size}
        for name, source in (("bank", self.bank), ("query", self.query)):
            if network is None:
                part = extract(apply, source, shared=False, **how)
            else:
                part = dict(network.extract(source, **how))
                part["patches"] = part.pop("mean")
            found.append(part)
            note_skipped(
                [Skipped(name, index, reason) for index, reason in part["bad"].items()],
                what=f"k-NN without some of the {name}",
                num_read=len(source),
                max_share=self.max_bad_share,
                path=self.bad_list if process_group.current().is_main else None,
            )
        return found

    def _are_right(self, found: list[dict], features: list) -> np.ndarray:
        """Whether the class of each query is right, bool [M]."""
        bank_labels, _, num_classes = shared_labels(self.bank, self.query)
        answers = answers_of(self.bank, self.query)
        classes_M = knn_classes(
            features[0],
            bank_labels[found[0]["kept"]],
            features[1],
            neighbors=self.neighbors,
            temperature=self.temperature,
            num_classes=num_classes,
            columns=answers.columns,
        )
        return answers.of(found[1]["kept"]).right(classes_M)


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


def build(section, setting: Setting) -> Knn | None:
    """The row `knn` of the table; None without labels."""
    sources = setting.labelled()
    if sources is None:
        log.info("no k-NN, for want of labels: set knn.query (and knn.bank) to have it")
        return None
    bank, query = sources
    shared_labels(bank, query)  # refuses classes that the bank lacks before anything is computed
    return Knn(
        bank=bank,
        query=query,
        transform=setting.transform,
        features=section.features,
        neighbors=section.neighbors,
        temperature=section.temperature,
        batch_size=section.batch_size,
        max_bad_share=setting.max_bad_share,
        bad_list=setting.bad_list,
    )

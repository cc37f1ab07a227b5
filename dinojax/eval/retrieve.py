"""Evaluation by retrieval: each image to be judged by ranks those to learn from by cosine.

Right are the images of its own class. The mean average precision over all of the ranking, the
plain one (the mean of the precisions at each right image); images that are equally similar enter
together, so that their order says nothing. No parameter is learned.
"""

import dataclasses

import numpy as np

from dinojax.eval import classification, met
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.labelled import READS, LabelledProbe
from dinojax.eval.network import Network

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "features": {
        "default": "cls",
        "says": "cls [P] | mean (of the patches) | cls+mean (side by side)",
        "choices": ("cls", "mean", "cls+mean"),
    },
    "whiten": {
        "default": 0,
        "says": "principal axes to whiten by, of the images to learn from; 0 = none; [ours]",
        "limits": (0, 65_536),
    },
    "queries": {
        "default": 1000,
        "says": "of the images to be judged by, drawn by a fixed seed; 0 = all; [ours]",
        "limits": (0, None),
    },
}
SEED = 8131  # of which images ask; part of the metric's meaning


@dataclasses.dataclass(frozen=True)
class Retrieval(LabelledProbe):
    """Fields are the keys of the section `retrieval`."""

    features: str
    whiten: int
    queries: int

    def measure(self, network: Network) -> Measured:
        """Columns retrieval/map and retrieval/first (the first is right), in percent."""
        train, test = self.images.extract(network, what="retrieval")
        names = READS[self.features]
        train_ND, test_MD = train.side_by_side(names), test.side_by_side(names)
        if self.whiten:
            axes = met.fit_whitening(train_ND, min(self.whiten, train_ND.shape[1]))
            train_ND, test_MD = axes(train_ND), axes(test_MD)
        train_ND, test_MD = met.unit(train_ND), met.unit(test_MD)
        asked = np.arange(len(test_MD))
        if 0 < self.queries < len(asked):
            rng = np.random.Generator(np.random.PCG64(SEED))
            asked = np.sort(rng.permutation(len(asked))[: self.queries])
        precisions, first = [], []
        for query in asked:
            similarities_N = train_ND @ test_MD[query]
            right_N = train.labels == test.labels[query]
            precisions.append(classification.average_precision(similarities_N, right_N))
            first.append(np.mean(right_N[similarities_N == similarities_N.max()]))
        found = np.array(precisions)  # NaN where no image of the class could be read
        samples = {
            "retrieval/map": 100.0 * found[np.isfinite(found)],
            "retrieval/first": 100.0 * np.array(first),
        }
        values = {name: float(np.mean(rows)) for name, rows in samples.items()}
        told = f"{len(asked)} queries in {len(train_ND)} images"
        return Measured(values, num=len(asked), told=told, samples=samples)


def build(section, setting: Setting) -> Retrieval | None:
    """The row `retrieval` of the table; None without labels."""
    return Retrieval.of(
        setting,
        features=section.features,
        whiten=int(section.whiten),
        queries=int(section.queries),
    )

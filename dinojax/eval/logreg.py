"""Evaluation by logistic regression on frozen features, its strength chosen on images held out.

The protocol of DINOv3 for fine-grained sets (arXiv:2508.10104, appendix D.7, and its released
evaluation): 45 strengths, the first best one on the validation part, a fit on all with it.
"""

import dataclasses

import numpy as np

from dinojax.eval import classification, logistic, subsets
from dinojax.eval.answers import Answers
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
    "hold_out": {
        "default": 0.1,
        "says": "share of each class that chooses the strength; [R]",
        "limits": (1e-6, 0.999999),
    },
    "metric": {
        "default": "accuracy",
        "says": "what chooses: accuracy | class_accuracy (mean over the classes); [R] by data set",
        "choices": ("accuracy", "class_accuracy"),
    },
    "seed": {"default": 0, "says": "of what is held out; [ours]", "limits": (0, None)},
}
PROTOCOLS = {
    "paper": {"features": "cls", "hold_out": 0.1},
    "released": {"features": "cls", "hold_out": 0.1},
    "quick": {"features": "cls", "hold_out": 0.1},
}
METRICS = {
    "accuracy": classification.accuracy,
    "class_accuracy": classification.mean_class_accuracy,
}


@dataclasses.dataclass(frozen=True)
class LogisticProbe(LabelledProbe):
    """Fields are the keys of the section `logreg`."""

    features: str
    hold_out: float
    metric: str
    seed: int

    def measure(self, network: Network) -> Measured:
        """Columns logreg/accuracy, logreg/top5 and logreg/class_accuracy, in percent."""
        train, test = self.images.extract(network, what="logistic regression")
        names = READS[self.features]
        features_ND = train.side_by_side(names)
        fitted, held = subsets.hold_out(train.labels, self.hold_out, self.seed)
        if not len(held):
            raise ValueError("logreg.hold_out leaves no image to choose by: classes have one each.")
        chosen = logistic.choose(
            (features_ND[fitted], train.labels[fitted]),
            (features_ND[held], train.labels[held]),
            num_classes=self.images.num_classes,
            metric=METRICS[self.metric],
        )
        scores_MC = chosen.model.scores(test.side_by_side(names))
        told = f"{len(fitted)} images to fit, {len(held)} to choose C={chosen.strength:.3g}"
        return judged("logreg", scores_MC, self.images.answers(test), told)


def judged(section: str, scores_MC: np.ndarray, answers: Answers, told: str) -> Measured:
    """Percentages of a probe's scores: accuracy and top5 (from six classes on).

    Where an image has one class, among all, class_accuracy too; of ImageNet-C, mce.
    """
    right = {"accuracy": answers.hits(scores_MC)}
    if len(answers.columns or scores_MC.T) > 5:
        right["top5"] = answers.hits(scores_MC, 5)
    samples = {f"{section}/{name}": 100.0 * hits_M for name, hits_M in right.items()}
    values = {name: float(np.mean(hits_M)) for name, hits_M in samples.items()}
    if answers.is_plain:
        mean = classification.mean_class_accuracy(scores_MC, answers.labels)
        values[f"{section}/class_accuracy"] = 100.0 * mean
    values |= answers.more(section, right["accuracy"])
    told = f"{told}, {len(scores_MC)} to judge"
    return Measured(values, num=len(scores_MC), told=told, samples=samples)


def build(section, setting: Setting) -> LogisticProbe | None:
    """The row `logreg` of the table; None without labels."""
    return LogisticProbe.of(
        setting,
        features=section.features,
        hold_out=section.hold_out,
        metric=section.metric,
        seed=int(section.seed),
    )

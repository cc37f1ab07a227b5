"""Evaluation by a few labelled images per class: ridge regression in closed form.

As big_vision reports it (few_shot_ridge.py): for each number of shots the accuracy on all images to
be judged by, averaged over draws of the shots. Random draws, not ImageNet's fixed 1 % and 10 %.
"""

import dataclasses

import numpy as np

from dinojax.eval import few_shot_ridge, subsets
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
        "says": "cls | mean (of the patches) | cls+mean (side by side); [ours]",
        "choices": ("cls", "mean", "cls+mean"),
    },
    "shots": {
        "default": (1, 5, 10, 25),
        "says": "images per class, a column each; [ours]",
        "many": "int",
        "limits": (1, None),
    },
    "draws": {"default": 3, "says": "of the images, as big_vision; [ours]", "limits": (1, 1000)},
    "penalty": {
        "default": 1024.0,
        "says": "of the weights, as big_vision; [ours]",
        "limits": (0, None),
    },
}


@dataclasses.dataclass(frozen=True)
class FewShot(LabelledProbe):
    """Fields are the keys of the section `fewshot`."""

    features: str
    shots: tuple[int, ...]
    draws: int
    penalty: float

    def measure(self, network: Network) -> Measured:
        """Columns fewshot/5 and so on, the percentage at so many images of each class."""
        train, test = self.images.extract(network, what="few-shot accuracy")
        names = READS[self.features]
        train_ND, test_MD = train.side_by_side(names), test.side_by_side(names)
        samples = {}
        for shots in self.shots:
            right_SM = [
                self._hits(train_ND, train.labels, test_MD, self.images.answers(test), shots, seed)
                for seed in range(self.draws)
            ]
            samples[f"fewshot/{shots}"] = 100.0 * np.mean(right_SM, axis=0)
        values = {name: float(np.mean(rows)) for name, rows in samples.items()}
        values["fewshot/mean"] = float(np.mean(list(values.values())))
        told = f"{self.draws} draws, {len(test.labels)} images to judge"
        return Measured(values, num=len(test.labels), told=told, samples=samples)

    def _hits(self, train_ND, labels_N, test_MD, answers: Answers, shots: int, seed: int):
        few = subsets.few_shot(labels_N, shots, seed)
        ridge = few_shot_ridge.Ridge(train_ND[few], labels_N[few], self.images.num_classes)
        scores_MC = ridge.scores(test_MD, self.penalty)
        return answers.right(np.argmax(answers.allowed(scores_MC), axis=1))


def build(section, setting: Setting) -> FewShot | None:
    """The row `fewshot` of the table; None without labels."""
    return FewShot.of(
        setting,
        features=section.features,
        shots=tuple(int(number) for number in section.shots),
        draws=int(section.draws),
        penalty=float(section.penalty),
    )

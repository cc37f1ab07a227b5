"""Features of the labelled images that probes learn from, and of those they are judged by."""

import dataclasses
from pathlib import Path
from typing import Any, Self

import numpy as np

from dinojax.data.example import Source
from dinojax.data.quarantine import Skipped, note_skipped
from dinojax.distributed import process_group
from dinojax.eval.answers import Answers, answers_of
from dinojax.eval.contract import Setting
from dinojax.eval.features import EvalTransform
from dinojax.eval.knn import shared_labels
from dinojax.eval.network import Network

# Value of a key `features` -> the outputs of a network that are put side by side for it.
READS = {"cls": ("cls",), "mean": ("mean",), "cls+mean": ("cls", "mean")}


@dataclasses.dataclass(frozen=True)
class Split:
    """Images whose features are known: {output: float32 [N, D]} and their classes int32 [N]."""

    outputs: dict[str, np.ndarray]
    labels: np.ndarray
    kept: np.ndarray  # indexes in the source

    def side_by_side(self, names: tuple[str, ...]) -> np.ndarray:
        """Some outputs in one array [N, sum of D]."""
        return np.concatenate([self.outputs[name] for name in names], axis=1)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The two sources of a setting: images to learn from, images to be judged by."""

    train: Source
    test: Source
    transform: EvalTransform
    batch_size: int
    max_bad_share: float  # of images that cannot be read
    bad_list: Path | None  # file that lists them

    @property
    def sources(self) -> tuple[Source, Source]:
        return self.train, self.test

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes of all images of both, numbered alike by their names."""
        train, test, _ = shared_labels(self.train, self.test)
        return train, test

    def answers(self, test: Split) -> Answers:
        """What is right of the images to be judged by that could be read."""
        return answers_of(self.train, self.test).of(test.kept)

    def extract(
        self, network: Network, names: tuple[str, ...] = ("cls", "mean"), *, what: str
    ) -> tuple[Split, Split]:
        """Both with these outputs of a network. what: whose images are left out, for a message.

        The defaults are what k-NN asks for, so that one network extracts them once for all.
        """
        train, test = (
            self._split(network, names, source, name, labels, what)
            for name, source, labels in zip(
                ("images to learn from", "images to be judged by"),
                self.sources,
                self.labels,
                strict=True,
            )
        )
        return train, test

    def test_split(self, network: Network, names: tuple[str, ...], *, what: str) -> Split:
        """The images to be judged by alone."""
        name = "images to be judged by"
        return self._split(network, names, self.test, name, self.labels[1], what)

    def _split(self, network, names, source, name, labels, what) -> Split:
        found: dict[str, Any] = network.extract(
            source, self.transform, names, batch_size=self.batch_size
        )
        note_skipped(
            [Skipped(name, index, reason) for index, reason in found["bad"].items()],
            what=f"{what} without some {name}",
            num_read=len(source),
            max_share=self.max_bad_share,
            path=self.bad_list if process_group.current().is_main else None,
        )
        outputs = {key: found[key] for key in names}
        return Split(outputs, labels[found["kept"]], found["kept"])


def open_labelled(setting: Setting) -> Labelled | None:
    """knn.bank and knn.query of a setting; None without labels.

    Raises ValueError when a class to be judged by is not among those to learn from.
    """
    sources = setting.labelled()
    if sources is None:
        return None
    train, test = sources
    shared_labels(train, test)  # refused before anything is computed
    return Labelled(
        train=train,
        test=test,
        transform=setting.transform,
        batch_size=setting.config.knn.batch_size,
        max_bad_share=setting.max_bad_share,
        bad_list=setting.bad_list,
    )


@dataclasses.dataclass(frozen=True)
class LabelledProbe:
    """What learns from features of labelled images; subclasses have their keys, and measure."""

    images: Labelled

    @property
    def sources(self) -> tuple[Source, Source]:
        return self.images.sources

    @classmethod
    def of(cls, setting: Setting, **keys: Any) -> Self | None:
        """With the images of a setting; None without labels."""
        images = open_labelled(setting)
        return None if images is None else cls(images, **keys)

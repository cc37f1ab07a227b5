"""What counts as right of labelled images: one class or several, among all classes or some."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from dinojax.data.example import Source
from dinojax.eval import classification, imagenet_c
from dinojax.eval.knn import shared_labels


@dataclasses.dataclass(frozen=True)
class Answers:
    """targets_NT: right classes of every image, padded with -1, as the training set numbers them.

    columns: the classes that may be answered, None = all (ImageNet-A and -R: those of the set).
    groups: of every image, "" = none; of ImageNet-C its CORRUPTION/LEVEL.
    """

    targets_NT: np.ndarray
    columns: tuple[int, ...] | None = None
    groups: tuple[str, ...] = ()

    def of(self, kept: np.ndarray) -> "Answers":
        """Those of some images."""
        groups = tuple(self.groups[index] for index in kept) if self.groups else ()
        return Answers(self.targets_NT[kept], self.columns, groups)

    @property
    def labels(self) -> np.ndarray:
        """The first right class of each image, int32 [N]."""
        return self.targets_NT[:, 0].astype(np.int32)

    @property
    def is_plain(self) -> bool:
        """One class an image, among all."""
        return self.targets_NT.shape[1] == 1 and self.columns is None

    def right(self, classes_N: np.ndarray) -> np.ndarray:
        """bool [N]: whether an answer is among the right classes."""
        return np.any(self.targets_NT == np.asarray(classes_N)[:, None], axis=1)

    def hits(self, scores_NC: np.ndarray, k: int = 1) -> np.ndarray:
        """bool [N]: whether a right class is among the k best that may be answered."""
        best_Nk = classification.top_k(self.allowed(scores_NC), k)
        return np.any(best_Nk[:, :, None] == self.targets_NT[:, None, :], axis=(1, 2))

    def allowed(self, scores_NC: np.ndarray) -> np.ndarray:
        """Scores, of classes that may not be answered lower than all others."""
        scores_NC = np.asarray(scores_NC)
        if self.columns is None:
            return scores_NC
        least = np.full(scores_NC.shape, scores_NC.min() - 1, scores_NC.dtype)
        columns = list(self.columns)
        least[:, columns] = scores_NC[:, columns]
        return least

    def more(self, section: str, right_N: np.ndarray) -> Mapping[str, float]:
        """Of ImageNet-C {SECTION/mce: mean corruption error in percent}; else nothing."""
        if not any(self.groups):
            return {}
        accuracies: dict[tuple[str, int], float] = {}
        groups = np.array(self.groups)
        for name in np.unique(groups):
            corruption, _, level = str(name).rpartition("/")
            accuracies[corruption, int(level)] = float(np.mean(right_N[groups == name]))
        return {f"{section}/mce": 100.0 * imagenet_c.mean_corruption_error(accuracies)}


def answers_of(bank: Source, query: Source) -> Answers:
    """Of the images of a query, numbered as the bank's classes.

    Raises ValueError for a class that the bank has not got.
    """
    own = getattr(query, "answers", None)
    if own is not None:
        return own
    return Answers(shared_labels(bank, query)[1][:, None])

"""Few labelled examples per class, and a part held out of each class, drawn by a seed."""

import numpy as np


def few_shot(labels, per_class: float, seed: int) -> np.ndarray:
    """Sorted indexes of some examples of each class.

    labels: int [N], or multi-hot [N, C], of which an example that is drawn for several of its
    classes counts once. per_class: below 1 a share of the class, else a number; at least one, and
    a whole class where it has fewer. A class's draw depends on its own examples and on the seed.
    Raises ValueError for a number that is neither.
    """
    if per_class <= 0 or (per_class >= 1 and per_class != int(per_class)):
        raise ValueError(f"{per_class} examples per class: give a share below 1 or a whole number.")
    picked = []
    for number, indexes in _members(labels):
        wanted = int(len(indexes) * per_class) if per_class < 1 else int(per_class)
        wanted = min(max(wanted, 1), len(indexes))
        picked.append(_shuffled(indexes, seed, number)[:wanted])
    return np.unique(np.concatenate(picked))


def hold_out(labels_N, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(indexes that stay, indexes held out), both sorted.

    Of each class the share, rounded down, but one at least and never all: a class of one example
    stays. As the split that the released evaluation makes where it has no validation set; there
    another generator draws. Raises ValueError for a share outside 0..1.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} to hold out is not between 0 and 1.")
    held: list[np.ndarray] = []
    for number, indexes in _members(np.asarray(labels_N)):
        count = min(max(int(len(indexes) * share), 1), len(indexes) - 1)
        held.append(_shuffled(indexes, seed, number)[:count])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels_N)), out), out


def _members(labels):
    """(class, indexes of its examples) of each class that has any."""
    labels = np.asarray(labels)
    if labels.ndim == 2:
        found = [np.flatnonzero(column) for column in labels.T]
    else:
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels))[:-1]
        found = np.split(order, ends)
    members = [(number, indexes) for number, indexes in enumerate(found) if len(indexes)]
    if not members:
        raise ValueError("no example has a class.")
    return members


def _shuffled(indexes: np.ndarray, seed: int, number: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, number])).permutation(indexes)

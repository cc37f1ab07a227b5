"""Weighted k-nearest-neighbour classification, as in DINO (arXiv:2104.14294, section 4.1).

A query's k most similar bank entries by cosine vote for their class with weight exp(s / T).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.data.example import Source

_MAX_ENTRIES = 2**26  # of one array of similarities or votes: 256 MiB
_MAX_BANK = 2**23  # ranks up to twice this are whole numbers that float32 tells apart


def knn_accuracy(
    bank_ND,
    bank_labels_N,
    queries_MD,
    query_labels_M,
    *,
    neighbors: int,
    temperature: float,
    num_classes: int,
) -> float:
    """Share of queries whose class is right, in 0..1. Arguments as of `knn_classes`."""
    labels_M = _checked_labels(query_labels_M, num_classes, "query")
    if len(labels_M) != len(queries_MD):
        raise ValueError(f"{len(queries_MD)} queries have {len(labels_M)} labels.")
    classes_M = knn_classes(
        bank_ND,
        bank_labels_N,
        queries_MD,
        neighbors=neighbors,
        temperature=temperature,
        num_classes=num_classes,
    )
    return float(np.mean(classes_M == labels_M))


def knn_classes(
    bank_ND,
    bank_labels_N,
    queries_MD,
    *,
    neighbors: int,
    temperature: float,
    num_classes: int,
    columns: Sequence[int] | None = None,
    max_entries: int = _MAX_ENTRIES,
) -> np.ndarray:
    """Class int32 [M] of each query.

    Similarities are float32 at the highest matmul precision. Where entries are equally similar
    the lowest bank index goes first, and of equal votes the lowest class wins. More neighbours
    than the bank has are clipped to the bank. `max_entries` bounds the memory of one chunk of
    queries and changes no result. columns: the classes that may be answered, None = all.

    Raises ValueError for empty or non-finite features, labels outside 0..num_classes - 1,
    a bank of over 8 million, neighbors < 1 and temperature <= 0.
    """
    if neighbors < 1:
        raise ValueError(f"knn.neighbors={neighbors} must be at least 1.")
    if temperature <= 0:
        raise ValueError(f"knn.temperature={temperature} must be above 0.")
    labels_N = _checked_labels(bank_labels_N, num_classes, "bank")
    bank_ND = _checked_features(bank_ND, "bank")
    queries_MD = _checked_features(queries_MD, "query")
    if len(bank_ND) > _MAX_BANK:
        raise ValueError(f"{len(bank_ND):,} bank features are more than {_MAX_BANK:,}.")
    if len(labels_N) != len(bank_ND):
        raise ValueError(f"{len(bank_ND)} bank features have {len(labels_N)} labels.")
    if bank_ND.shape[1] != queries_MD.shape[1]:
        raise ValueError(f"bank width {bank_ND.shape[1]} and query width {queries_MD.shape[1]}.")

    neighbors = min(neighbors, len(bank_ND))
    entries = max(len(bank_ND), neighbors * num_classes)
    chunk = max(1, min(len(queries_MD), max_entries // entries))
    unit_ND = _unit(bank_ND)
    allowed_C = np.ones(num_classes, bool)
    if columns is not None:
        allowed_C = np.isin(np.arange(num_classes), columns)
    classes = []
    for first in range(0, len(queries_MD), chunk):
        part_MD = queries_MD[first : first + chunk]
        fill = chunk - len(part_MD)  # the last chunk has the same shape: one compile
        classes_M = _vote(
            unit_ND,
            labels_N,
            _unit(jnp.pad(part_MD, ((0, fill), (0, 0)))),
            jnp.float32(temperature),
            allowed_C=jnp.asarray(allowed_C),
            neighbors=neighbors,
            num_classes=num_classes,
        )
        classes.append(np.asarray(classes_M)[: chunk - fill])
    return np.concatenate(classes)


@functools.partial(jax.jit, static_argnames=("neighbors", "num_classes"))
def _vote(
    bank_ND, labels_N, queries_MD, temperature, *, allowed_C, neighbors: int, num_classes: int
):
    """Classes [M] of one chunk of queries; both inputs have unit length."""
    highest = jax.lax.Precision.HIGHEST
    similarities_MN = jnp.einsum("MD,ND->MN", queries_MD, bank_ND, precision=highest)
    indexes_Mk = largest(similarities_MN, neighbors)
    nearest_Mk = jnp.take_along_axis(similarities_MN, indexes_Mk, axis=1)
    weights_Mk = jax.nn.softmax(nearest_Mk / temperature, axis=1)
    votes_MkC = jax.nn.one_hot(labels_N[indexes_Mk], num_classes, dtype=jnp.float32)
    scores_MC = jnp.einsum("Mk,MkC->MC", weights_Mk, votes_MkC, precision=highest)
    return jnp.argmax(jnp.where(allowed_C[None], scores_MC, -1), axis=1)


def largest(similarities_MN: jax.Array, neighbors: int) -> jax.Array:
    """Indexes [M, k] of the largest similarities; among equal ones the lowest indexes.

    Which of several equal values top_k returns depends on the backend, so it is used for the k-th
    value only, and once more on numbers that are all different. Both are of float32, and the k-th
    is the least of the k: of integers, or with a slice behind it, XLA sorts whole rows on CPU.
    """
    num_bank = similarities_MN.shape[1]
    kth_M1 = jnp.min(jax.lax.top_k(similarities_MN, neighbors)[0], axis=1, keepdims=True)
    rank_1N = jnp.arange(num_bank, 0, -1, dtype=jnp.float32)[None, :]
    rank_MN = jnp.where(similarities_MN == kth_M1, rank_1N, 0)
    rank_MN = jnp.where(similarities_MN > kth_M1, rank_1N + num_bank, rank_MN)
    return jax.lax.top_k(rank_MN, neighbors)[1]


def _unit(features_ND: jax.Array) -> jax.Array:
    norms_N1 = jnp.linalg.norm(features_ND, axis=1, keepdims=True)
    return features_ND / jnp.maximum(norms_N1, 1e-12)


def _checked_features(features_ND, name: str) -> jax.Array:
    features_ND = jnp.asarray(features_ND, dtype=jnp.float32)
    if features_ND.ndim != 2 or features_ND.size == 0:
        raise ValueError(f"{name} features must be a filled [N, D], got {features_ND.shape}.")
    if not bool(jnp.all(jnp.isfinite(features_ND))):
        raise ValueError(f"{name} features contain NaN or infinity.")
    return features_ND


def _checked_labels(labels_N, num_classes: int, name: str) -> np.ndarray:
    labels_N = np.asarray(labels_N)
    if labels_N.size and not 0 <= labels_N.min() <= labels_N.max() < num_classes:
        raise ValueError(
            f"{name} labels run from {labels_N.min()} to {labels_N.max()}; with "
            f"num_classes={num_classes} they must be in 0..{num_classes - 1}."
        )
    return labels_N.astype(np.int32)


def shared_labels(bank: Source, query: Source) -> tuple[np.ndarray, np.ndarray, int]:
    """(bank labels, query labels, number of classes), numbered alike by class name.

    Raises ValueError when a source has no labels or a query's class is missing from the bank.
    """
    if bank.labels is None or query.labels is None:
        raise ValueError("k-NN needs labels in the bank and in the queries.")
    numbers = {name: number for number, name in enumerate(bank.class_names)}
    unknown = [name for name in query.class_names if name not in numbers]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(query.class_names)} query classes are not in the bank "
            f"({', '.join(unknown[:5])}); the bank has {', '.join(bank.class_names[:5])} ..."
        )
    renumbered = np.array([numbers[name] for name in query.class_names], dtype=np.int32)
    return bank.labels, renumbered[query.labels], len(bank.class_names)

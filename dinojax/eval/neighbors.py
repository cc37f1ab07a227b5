"""Nearest neighbours by similarity, and k-NN scores of several k at once from one search.

The estimator of the released DINOv3 evaluation: the softmax over similarities is taken once, over
the most neighbours that any k asks for, so a smaller k's scores do not sum to 1.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval.knn import largest

MAX_ENTRIES = 2**26  # of one array of similarities: 256 MiB
NONE = -1  # of `excluded`: nothing is left out


def nearest(
    bank_ND,
    queries_MD,
    k: int,
    *,
    excluded_M=None,
    normalize: bool = True,
    max_entries: int = MAX_ENTRIES,
) -> tuple[np.ndarray, np.ndarray]:
    """(similarities [M, k], bank indexes int32 [M, k]), most similar first.

    Of equal similarities the lowest index goes first. Features are float32, or float64 where jax
    has it and they are. normalize: to unit length first, so that similarities are cosines.
    excluded_M: the bank index that each query must not find, itself; -1 = none. `max_entries`
    bounds the memory of one chunk of queries and changes no result.
    Raises ValueError for empty or non-finite features, differing widths, and a k that the bank
    does not have.
    """
    bank_ND, queries_MD = _features(bank_ND, "bank"), _features(queries_MD, "query")
    if bank_ND.shape[1] != queries_MD.shape[1]:
        raise ValueError(f"bank width {bank_ND.shape[1]} and query width {queries_MD.shape[1]}.")
    num = len(queries_MD)
    excluded_M = np.full(num, NONE) if excluded_M is None else np.asarray(excluded_M)
    left = len(bank_ND) - bool(np.any(excluded_M != NONE))
    if not 1 <= k <= left:
        raise ValueError(f"{k} neighbours of a bank that has {left} to give.")
    if normalize:
        bank_ND, queries_MD = _unit(bank_ND), _unit(queries_MD)
    chunk = max(1, min(num, max_entries // len(bank_ND)))
    found = []
    for first in range(0, num, chunk):
        part_MD = queries_MD[first : first + chunk]
        fill = chunk - len(part_MD)  # the last chunk has the same shape: one compile
        part_MD = np.pad(part_MD, ((0, fill), (0, 0)))
        own_M = np.pad(excluded_M[first : first + chunk], (0, fill), constant_values=NONE)
        pair = _search(bank_ND, part_MD, own_M.astype(np.int32), k=k)
        found.append([np.asarray(x)[: chunk - fill] for x in pair])
    similarities, indexes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return similarities, indexes


def scores(
    similarities_Mk,
    indexes_Mk,
    labels,
    *,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, np.ndarray]:
    """{k: weights of the classes [M, C]}, of what `nearest` found for at least the largest k.

    labels: of the bank, int [N] or multi-hot [N, C]. Each neighbour gives its classes a share
    exp(s / temperature) of the sum over all max(ks) neighbours. A k above the number of neighbours
    is that number, and appears once.
    """
    if temperature <= 0 or min(ks) < 1:
        raise ValueError(
            f"k-NN needs k of at least 1 and a temperature above 0: {ks}, {temperature}"
        )
    similarities_Mk, labels = np.asarray(similarities_Mk), np.asarray(labels)
    ks = sorted({min(k, similarities_Mk.shape[1]) for k in ks})
    indexes_Mk = np.asarray(indexes_Mk)[:, : ks[-1]]
    scaled_Mk = similarities_Mk[:, : ks[-1]] / np.asarray(temperature, similarities_Mk.dtype)
    weights_Mk = np.exp(scaled_Mk - scaled_Mk.max(axis=1, keepdims=True))
    weights_Mk /= weights_Mk.sum(axis=1, keepdims=True)
    totals = np.zeros((len(indexes_Mk), num_classes), weights_Mk.dtype)
    rows_M, found, before = np.arange(len(indexes_Mk)), {}, 0
    for k in ks:
        for place in range(before, k):  # a query meets one class per place: no index twice
            own_M = labels[indexes_Mk[:, place]]
            if labels.ndim == 2:
                totals += weights_Mk[:, place, None] * own_M
            else:
                totals[rows_M, own_M] += weights_Mk[:, place]
        found[k], before = totals.copy(), k
    return found


def excluded_by_id(bank_ids: Sequence, query_ids: Sequence) -> np.ndarray:
    """The bank index of each query's own id int64 [M], -1 where the bank has not got it.

    For leave-one-out by who it is: the nearest neighbour may be a duplicate that has every right
    to vote. Raises ValueError for an id that the bank has twice.
    """
    places = {name: index for index, name in enumerate(bank_ids)}
    if len(places) != len(bank_ids):
        raise ValueError(f"{len(bank_ids) - len(places)} ids of the bank occur more than once.")
    return np.array([places.get(name, NONE) for name in query_ids])


@functools.partial(jax.jit, static_argnames="k")
def _search(bank_ND, queries_MD, excluded_M, *, k: int):
    highest = jax.lax.Precision.HIGHEST
    similarities_MN = jnp.einsum("MD,ND->MN", queries_MD, bank_ND, precision=highest)
    own_MN = jnp.arange(bank_ND.shape[0])[None, :] == excluded_M[:, None]
    similarities_MN = jnp.where(own_MN, -jnp.inf, similarities_MN)
    indexes_Mk = largest(similarities_MN, k).astype(jnp.int32)
    nearest_Mk = jnp.take_along_axis(similarities_MN, indexes_Mk, axis=1)
    # `largest` tells which, in no useful order.
    falling_Mk, indexes_Mk = jax.lax.sort((-nearest_Mk, indexes_Mk), dimension=1, num_keys=2)
    return -falling_Mk, indexes_Mk


def _features(features_ND, name: str) -> np.ndarray:
    features_ND = np.asarray(features_ND)
    wide = features_ND.dtype == np.float64 and jax.config.read("jax_enable_x64")
    features_ND = features_ND.astype(np.float64 if wide else np.float32)
    if features_ND.ndim != 2 or features_ND.size == 0:
        raise ValueError(f"{name} features must be a filled [N, D], got {features_ND.shape}.")
    if not np.all(np.isfinite(features_ND)):
        raise ValueError(f"{name} features contain NaN or infinity.")
    return features_ND


def _unit(features_ND: np.ndarray) -> np.ndarray:
    norms_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    return features_ND / np.maximum(norms_N1, features_ND.dtype.type(1e-12))

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
COLUMNS = 64  # entries of one column of a row of similarities, of which the maximum is taken
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
    num_bank = len(bank_ND)
    bank_ND = jnp.asarray(np.pad(bank_ND, ((0, -num_bank % COLUMNS), (0, 0))))
    found = []
    for first in range(0, num, chunk):
        part_MD = queries_MD[first : first + chunk]
        fill = chunk - len(part_MD)  # the last chunk has the same shape: one compile
        part_MD = np.pad(part_MD, ((0, fill), (0, 0)))
        own_M = np.pad(excluded_M[first : first + chunk], (0, fill), constant_values=NONE)
        pair = _search(bank_ND, part_MD, own_M.astype(np.int32), k=k, num_bank=num_bank)
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


@functools.partial(jax.jit, static_argnames=("k", "num_bank"))
def _search(bank_ND, queries_MD, excluded_M, *, k: int, num_bank: int):
    """Of a bank filled up to a multiple of COLUMNS; what is beyond num_bank is not found."""
    highest = jax.lax.Precision.HIGHEST
    similarities_MN = jnp.einsum("MD,ND->MN", queries_MD, bank_ND, precision=highest)
    rows_M = jnp.arange(len(excluded_M))
    own_M = jnp.where(excluded_M == NONE, len(bank_ND), excluded_M)  # beyond the end: dropped
    similarities_MN = similarities_MN.at[rows_M, own_M].set(-jnp.inf, mode="drop")
    similarities_MN = similarities_MN.at[:, num_bank:].set(-jnp.inf)
    if len(bank_ND) // COLUMNS < 2 * k:
        return _falling(similarities_MN, largest(similarities_MN, k))
    return _by_columns(similarities_MN, k)


def _by_columns(similarities_MN, k: int):
    """As of `_falling`, by looking into the k most promising of many columns alone.

    Entries j, j + S, j + 2 S ... are a column; the k columns of the largest maxima hold the k
    largest entries, and all that are equal to the last of them unless more maxima are: then
    everything is looked through.
    """
    num_rows, num = similarities_MN.shape
    stride = num // COLUMNS
    table_MCS = similarities_MN.reshape(num_rows, COLUMNS, stride)
    maxima_MS = jnp.max(table_MCS, axis=1)
    least_M1 = jnp.min(jax.lax.top_k(maxima_MS, k)[0], axis=1, keepdims=True)
    clear = jnp.all(jnp.sum(maxima_MS >= least_M1, axis=1) == k)

    def few(_):
        columns_Mk = jnp.sort(largest(maxima_MS, k), axis=1)
        found_MCk = jnp.take_along_axis(table_MCS, columns_Mk[:, None, :], axis=2)
        offsets_C = (jnp.arange(COLUMNS, dtype=jnp.int32) * stride)[None, :, None]
        # In the order of the bank, as `largest` wants it: by row of the table, then by column.
        indexes = (offsets_C + columns_Mk[:, None, :].astype(jnp.int32)).reshape(num_rows, -1)
        found = found_MCk.reshape(num_rows, -1)
        places_Mk = largest(found, k)
        values = jnp.take_along_axis(found, places_Mk, axis=1)
        return _sorted(values, jnp.take_along_axis(indexes, places_Mk, axis=1))

    return jax.lax.cond(
        clear, few, lambda _: _falling(similarities_MN, largest(similarities_MN, k)), None
    )


def _falling(similarities_MN, indexes_Mk):
    """(similarities, indexes), most similar first, of the indexes that `largest` found."""
    return _sorted(jnp.take_along_axis(similarities_MN, indexes_Mk, axis=1), indexes_Mk)


def _sorted(values_Mk, indexes_Mk):
    pair = (-values_Mk, indexes_Mk.astype(jnp.int32))
    falling_Mk, indexes_Mk = jax.lax.sort(pair, dimension=1, num_keys=2)
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

"""Metrics of instance retrieval: revisited Oxford and Paris, AmsterTime, and any ranked list.

Oxford and Paris: Radenovic et al., arXiv:1803.11285. An average precision is the area under the
curve by trapezoids, as in the benchmark's own code, and not the sum of precisions.
"""

import dataclasses

import numpy as np

EASY, HARD, JUNK = 1, 2, 3  # what an image of the database is to a query; 0 = another place

# Protocol -> (what counts as positive, what is taken out of the list)
PROTOCOLS = {
    "easy": ((EASY,), (JUNK, HARD)),
    "medium": ((EASY, HARD), (JUNK,)),
    "hard": ((HARD,), (JUNK, EASY)),
}


@dataclasses.dataclass(frozen=True)
class Ranked:
    """What a list of queries found."""

    mean: float  # of the average precisions of the queries that have positives; NaN if none has
    average_precisions: np.ndarray  # [Q], NaN without positives
    precisions_QK: np.ndarray  # at each of the ks, NaN without positives

    @property
    def mean_precisions(self) -> np.ndarray:
        """[K], over the queries that have positives."""
        return np.nanmean(self.precisions_QK, axis=0)


def ranking(similarities_QN) -> np.ndarray:
    """Database indexes [Q, N], most similar first; of equal ones the lowest index first."""
    return np.argsort(-np.asarray(similarities_QN, np.float64), axis=1, kind="stable")


def evaluate(ranks_QN, roles_QN, protocol: str, ks=(1, 5, 10)) -> Ranked:
    """Of each query's ranked database indexes and of what each image is to it.

    roles_QN: 0, EASY, HARD or JUNK, by database index. Raises ValueError for another protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; choose of {', '.join(PROTOCOLS)}.")
    positive, junk = PROTOCOLS[protocol]
    aps, precisions = [], []
    for ranks_N, roles_N in zip(np.asarray(ranks_QN), np.asarray(roles_QN), strict=True):
        roles = roles_N[ranks_N]
        kept = roles[~np.isin(roles, junk)]
        places = np.flatnonzero(np.isin(kept, positive))
        aps.append(average_precision(places))
        precisions.append([precision_at(places, k) for k in ks])
    found = np.array(aps)
    mean = float(np.nanmean(found)) if np.any(np.isfinite(found)) else float("nan")
    return Ranked(mean, found, np.array(precisions))


def average_precision(places: np.ndarray) -> float:
    """Trapezoid average precision of positives at these places, rising from 0; NaN of none."""
    places = np.asarray(places, np.float64)
    if not len(places):
        return float("nan")
    before = np.arange(len(places))
    left = np.divide(before, places, out=np.ones_like(places), where=places > 0)
    return float(np.mean((left + (before + 1) / (places + 1)) / 2))


def precision_at(places: np.ndarray, k: int) -> float:
    """Share of positives in the first min(k, place of the last positive); NaN without any."""
    if not len(places):
        return float("nan")
    depth = min(int(places[-1]) + 1, k)
    return float(np.sum(np.asarray(places) < depth) / depth)


def reciprocal_ranks(relevant_QN, ks=(1, 5)) -> tuple[float, list[float]]:
    """(mean of 1 / rank of the relevant one, share of queries that have it among the first k).

    AmsterTime (arXiv:2203.16291): every query has a single relevant image, whose average precision
    is 1 / rank; a list that does not contain it counts 0, so cut no list. relevant_QN: bool, in
    the order of the ranking.
    """
    relevant_QN = np.asarray(relevant_QN, bool)
    found = relevant_QN.any(axis=1)
    ranks = relevant_QN.argmax(axis=1) + 1
    values = np.where(found, 1.0 / ranks, 0.0)
    return float(np.mean(values)), [float(np.mean(found & (ranks <= k))) for k in ks]


def leave_one_out(similarities_NN, labels_N) -> float:
    """Mean average precision of every image as a query among all others of the same set.

    Positives are the others of its class; the plain average precision, the mean of the precisions
    at each of them. For copy detection and for any labelled folder. Images without a second of
    their class are left out; NaN if all are.
    """
    labels_N = np.asarray(labels_N)
    own = np.array(similarities_NN, np.float64)
    np.fill_diagonal(own, -np.inf)
    order_NN = ranking(own)[:, :-1]
    relevant_NN = labels_N[order_NN] == labels_N[:, None]
    precision_NN = np.cumsum(relevant_NN, axis=1) / np.arange(1, len(labels_N))
    totals_N = relevant_NN.sum(axis=1)
    if not np.any(totals_N):
        return float("nan")
    sums_N = np.sum(precision_NN * relevant_NN, axis=1)
    return float(np.mean(sums_N[totals_N > 0] / totals_N[totals_N > 0]))

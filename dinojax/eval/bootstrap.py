"""Bootstrap intervals: how far a value would have been off with other samples of the same kind.

Percentile intervals of Efron (1979): the statistic of as many samples, drawn with replacement.
"""

from collections.abc import Callable

import numpy as np

DRAWS = 1000
SEED = 20_261_130  # part of what an interval means, not of the value


def interval(
    samples: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    draws: int = DRAWS,
    share: float = 0.95,
) -> tuple[float, float]:
    """(low, high) that holds this share of the statistic's values over draws.

    samples: [n, ...]; rows are drawn. The same on every machine: numpy's PCG64 with a fixed seed.
    Raises ValueError without samples.
    """
    if len(samples) == 0:
        raise ValueError("no samples to draw from")
    rng = np.random.Generator(np.random.PCG64(SEED))
    if statistic is np.mean:  # of rows of equal length: the mean of their means
        samples = np.asarray(samples, np.float64).reshape(len(samples), -1).mean(axis=1)
    num = len(samples)
    values = [float(statistic(samples[rng.integers(0, num, num)])) for _ in range(draws)]
    low, high = np.percentile(values, [50 * (1 - share), 50 * (1 + share)])
    return float(low), float(high)

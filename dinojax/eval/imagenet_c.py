"""Mean corruption error on ImageNet-C (Hendrycks and Dietterich, arXiv:1903.12261, section 4)."""

from collections.abc import Mapping

import numpy as np

LEVELS = (1, 2, 3, 4, 5)

# Mean error of AlexNet over the five levels of each corruption, from the authors' repository.
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
# The four further corruptions of the authors, which are no part of the mean.
EXTRA = {
    "speckle_noise": 0.845388,
    "gaussian_blur": 0.787108,
    "spatter": 0.717512,
    "saturate": 0.658248,
}


def corruption_errors(
    accuracies: Mapping[tuple[str, int], float], *, extra: bool = False
) -> dict[str, float]:
    """{corruption: its mean error over the five levels, divided by AlexNet's}; 1 = AlexNet's.

    accuracies: share of right answers in 0..1 of each (corruption, level). extra: the four further
    corruptions as well. Raises ValueError naming the cells that are missing.
    """
    table = ALEXNET | EXTRA if extra else ALEXNET
    missing = [
        (name, level) for name in table for level in LEVELS if (name, level) not in accuracies
    ]
    if missing:
        told = ", ".join(f"{name}/{level}" for name, level in missing[:5])
        raise ValueError(
            f"{len(missing)} of {len(table) * len(LEVELS)} cells of ImageNet-C are missing: {told}"
            f"{' ...' if len(missing) > 5 else ''}; the mean is over all of them."
        )
    errors = {
        name: float(np.mean([1.0 - accuracies[name, level] for level in LEVELS])) for name in table
    }
    return {name: errors[name] / table[name] for name in table}


def mean_corruption_error(
    accuracies: Mapping[tuple[str, int], float], *, extra: bool = False
) -> float:
    """Mean of `corruption_errors`: of the 15 of the benchmark, or of all 19. Lower is better.

    The released evaluation averages over 19, which is no number where the four are absent; the
    papers' mCE, times 100, is the one over 15.
    """
    return float(np.mean(list(corruption_errors(accuracies, extra=extra).values())))

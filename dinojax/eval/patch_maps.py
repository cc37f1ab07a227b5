"""Patches of images as maps [h, w, D] on the host, in batches of one shape."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np

from dinojax.distributed import process_group
from dinojax.eval.network import Network
from dinojax.weights.pixels import NORMALIZE
from dinojax.weights.preprocess import Preprocessing


def patch_maps(
    network: Network, images_BHWC: np.ndarray, *, patch_size: int, batch_size: int
) -> np.ndarray:
    """float32 [B, h, w, D] of normalised images of one size.

    Every pass has `batch_size` images, the last ones zeros, so that one program is compiled.
    Raises ValueError for sides that are no multiple of the patch.
    """
    height, width = images_BHWC.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ValueError(f"images of {height} x {width} are not whole patches of {patch_size}.")
    found = []
    for first in range(0, len(images_BHWC), batch_size):
        part = images_BHWC[first : first + batch_size]
        fill = [(0, batch_size - len(part)), (0, 0), (0, 0), (0, 0)]
        patches_BPD = process_group.fetch(network(np.pad(part, fill))[2])
        found.append(np.asarray(patches_BPD, np.float32)[: len(part)])
    grid = height // patch_size, width // patch_size
    return np.concatenate(found).reshape(-1, *grid, found[0].shape[-1])


def values_of(section: Any, keys: Iterable[str]) -> SimpleNamespace:
    """A section's values, all read now: one that is read later counts as never read."""
    return SimpleNamespace(**{key: getattr(section, key) for key in keys})


def normalizer(transform: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Values 0..1 [..., H, W, C] -> what the network sees of them, neither resized nor cut.

    transform: an EvalTransform or a Preprocessing.
    """
    own = transform if isinstance(transform, Preprocessing) else transform.preprocessing
    normalized = NORMALIZE[own.normalize]

    def normalize(values_HWC: np.ndarray) -> np.ndarray:
        own.check_statistics(values_HWC.shape[-1])
        return normalized(values_HWC.astype(np.float32), own.mean, own.std).astype(np.float32)

    return normalize


def as_seen(transform: Any, pixels_HWC: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] -> float32 of the same size, normalised."""
    return normalizer(transform)(pixels_HWC.astype(np.float32) / 255)

"""Two fingerprints of written weights: the bytes of every tensor, and features of one image."""

from typing import Any

import jax
import numpy as np

from dinojax.weights.tensors import Tensors, digests

TOLERANCE = 1e-3  # relative; kinds of devices differ by less, other weights by more


def synthetic_image(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """A fixed normalised image [H, W, C]: smooth, in no symmetry, from sines alone."""
    y, x, c = np.meshgrid(*map(np.arange, (height, width, channels)), indexing="ij")
    phase = 0.37 * y + 0.61 * x + 1.3 * c + 0.013 * x * y + 2.1 * seed
    return (np.sin(phase) + np.cos(0.11 * y - 0.07 * x + c)).astype(np.float32)


def features(backbone) -> dict[str, Any]:
    """Numbers that tell what the backbone makes of one small image."""
    size, channels = backbone.spec.patch_size, backbone.spec.channels
    image = synthetic_image(3 * size, 4 * size, channels)
    with jax.default_matmul_precision("highest"):
        found = backbone(image[None])
    cls, patches = (np.asarray(x, np.float64)[0] for x in (found.cls, found.patches))
    return {
        "cls_norm": float(np.linalg.norm(cls)),
        "cls": cls[:4].tolist(),
        "patches_norm": float(np.linalg.norm(patches)),
        "last_patch": patches[-1, :4].tolist(),
    }


def check(found: dict[str, Any], stored: dict[str, Any], source: str) -> None:
    """Raise ValueError when features are not those that were written down with the weights."""
    numbers = [x for value in stored.values() for x in np.ravel(value).tolist()]
    if stored.keys() != found.keys() or any(type(x) is not float for x in numbers):
        raise ValueError(f"{source}: provenance.json has features={stored}, which are none.")
    if any(np.shape(stored[name]) != np.shape(value) for name, value in found.items()):
        raise ValueError(f"{source}: provenance.json has features={stored} of other sizes.")
    ours, theirs = (np.hstack([x[name] for name in sorted(stored)]) for x in (found, stored))
    scale = max(1.0, float(np.max(np.abs(theirs))) ** 0.5)
    if not np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * scale):
        raise ValueError(
            f"{source}: features of the test image are {found}, but {stored} was stored with the "
            "weights: the file or its config.json was changed, or this machine computes wrongly."
        )


def check_digests(tensors: Tensors, stored: dict[str, str], source: str) -> None:
    """Raise ValueError naming the tensors whose bytes are not those that were written."""
    present = [name for name in tensors if name in stored]
    own = digests(tensors, present)
    if changed := [name for name in present if own[name] != stored[name]]:
        raise ValueError(
            f"{source}: {len(changed)} tensors are not those that were exported, such as "
            f"{changed[0]} (provenance.json holds their SHA-256)."
        )

"""Label propagation through a video by similar patches. DINOv3, arXiv:2508.10104, D.5.

Each patch takes the labels of the patches that are most like it, in the first frame and in the
last few, within a neighbourhood of its own place. Nothing is trained.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval.dense_pixels import nearest
from dinojax.ops.interpolate import resize


class Settings(NamedTuple):
    """Row 1 of the paper's table 27 (its highlighted row cannot be told from the text)."""

    context: int = 7  # frames before the current one, beside the first
    radius: float = 12.0  # in patches; inf = everywhere
    shape: str = "square"  # square | circle
    neighbors: int = 5
    temperature: float = 0.2


def first_labels(mask_HW: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Ids [h, w] of the patches of the first frame: of the pixel in the middle of each."""
    return nearest(mask_HW, grid, exact=True)


def neighbourhood(grid: tuple[int, int], radius: float, shape: str) -> np.ndarray:
    """bool [h, w, h, w]: which places are within the radius of which. For pictures and tests."""
    down, right = (np.abs(np.subtract.outer(np.arange(n), np.arange(n))) for n in grid)
    return _near(down[:, None, :, None], right[None, :, None, :], radius, shape)


def _near(down, right, radius: float, shape: str):
    if shape not in ("square", "circle"):
        raise ValueError(f"shape={shape!r} is unknown; choose of square, circle.")
    if shape == "square":
        return (down <= radius) & (right <= radius)
    return down * down + right * right <= radius * radius


def propagate(
    features: Iterable[np.ndarray], labels_hwM: np.ndarray, settings: Settings | None = None
) -> Iterator[jax.Array]:
    """Soft labels [h, w, M] of each frame after the first.

    features: patches [h, w, D] of the frames in order, the first one included; they are divided by
    their length here. labels: of the first frame, one-hot. Only context + 1 frames are kept.
    """
    settings = settings or Settings()
    frames = iter(features)
    first_hwD = _unit(jnp.asarray(next(frames)))
    height, width, _ = first_hwD.shape
    size = settings.context + 1
    # Places of frames that are not there yet are counted out, so that one program is compiled.
    feature_ThwD = jnp.zeros((size, *first_hwD.shape), first_hwD.dtype).at[0].set(first_hwD)
    first_hwM = jnp.asarray(labels_hwM, first_hwD.dtype)
    label_ThwM = jnp.zeros((size, *first_hwM.shape), first_hwD.dtype).at[0].set(first_hwM)
    for count, frame in enumerate(frames):
        current_hwD = _unit(jnp.asarray(frame))
        there_T = np.arange(size) <= count
        found_hwM = _step(current_hwD, feature_ThwD, label_ThwM, there_T, settings=settings)
        yield found_hwM
        if settings.context:
            place = 1 + count % settings.context  # the oldest
            feature_ThwD = feature_ThwD.at[place].set(current_hwD)
            label_ThwM = label_ThwM.at[place].set(found_hwM)


@functools.partial(jax.jit, static_argnames="settings")
def _step(current_hwD, feature_ThwD, label_ThwM, there_T, *, settings: Settings):
    """Labels [h, w, M] of the current frame, row after row of its patches.

    A row is compared with the rows that are within the radius, never with the whole context.
    """
    height, width, _ = current_hwD.shape
    reach = min(int(settings.radius), height - 1) if np.isfinite(settings.radius) else height - 1
    rows = min(2 * reach + 1, height)  # of the context that a row may look at
    right_ww = jnp.abs(jnp.subtract.outer(jnp.arange(width), jnp.arange(width)))

    def of_row(row):
        start = jnp.clip(row - reach, 0, height - rows)
        keys_TrwD = jax.lax.dynamic_slice_in_dim(feature_ThwD, start, rows, axis=1)
        labels_TrwM = jax.lax.dynamic_slice_in_dim(label_ThwM, start, rows, axis=1)
        cosine_wTrv = jnp.einsum("wd,trvd->wtrv", current_hwD[row], keys_TrwD, precision="highest")
        down_r = jnp.abs(start + jnp.arange(rows) - row)
        near_wrv = _near(down_r[None, :, None], right_ww[:, None], settings.radius, settings.shape)
        seen_wTrv = near_wrv[:, None] & there_T[None, :, None, None]
        return _weighted(jnp.where(seen_wTrv, cosine_wTrv, -jnp.inf), labels_TrwM, settings)

    return jax.lax.map(of_row, jnp.arange(height))


def _weighted(cosine_wTrv, labels_TrwM, settings: Settings):
    """Labels [w, M]: softmax over the nearest patches; those equal to the last of them count."""
    cosine_wN = cosine_wTrv.reshape(len(cosine_wTrv), -1)
    count = min(settings.neighbors, cosine_wN.shape[1])
    least_w1 = jnp.min(jax.lax.top_k(cosine_wN, count)[0], axis=1, keepdims=True)
    kept_wN = jnp.where(cosine_wN >= least_w1, cosine_wN, -jnp.inf)
    weights_wN = jax.nn.softmax(kept_wN / settings.temperature, axis=1)
    labels_NM = labels_TrwM.reshape(-1, labels_TrwM.shape[-1])
    found_wM = jnp.einsum("wn,nm->wm", weights_wN, labels_NM, precision="highest")
    return found_wM / jnp.sum(found_wM, axis=1, keepdims=True)


def predicted(labels_hwM: jax.Array, size: tuple[int, int], *, rule: str = "paper") -> np.ndarray:
    """Ids [H, W] of the pixels.

    rule: paper (bilinear, the largest), notebook (nearest, stretched, the largest: DINOv3's
    released notebook), or dino (bilinear, stretched, the largest: DINO's script).
    """
    if rule not in ("paper", "notebook", "dino"):
        raise ValueError(f"rule={rule!r} is unknown; choose of paper, notebook, dino.")
    if rule == "notebook":
        return stretched(nearest(np.asarray(labels_hwM), size)).argmax(axis=-1)
    labels_HWM = resize(jnp.asarray(labels_hwM)[None], size, method="bilinear", antialias=False)[0]
    if rule == "dino":
        return stretched(np.asarray(labels_HWM)).argmax(axis=-1)
    return np.asarray(jnp.argmax(labels_HWM, axis=-1))


def stretched(labels_HWM: np.ndarray) -> np.ndarray:
    """Each id's labels from 0 to 1 over the frame; 0 where they are all the same."""
    least_M, span_M = labels_HWM.min(axis=(0, 1)), np.ptp(labels_HWM, axis=(0, 1))
    return np.where(span_M > 0, (labels_HWM - least_M) / np.where(span_M > 0, span_M, 1), 0)


def _unit(features_hwD: jax.Array) -> jax.Array:
    features_hwD = features_hwD.astype(jnp.promote_types(features_hwD.dtype, jnp.float32))
    lengths = jnp.linalg.norm(features_hwD, axis=-1, keepdims=True)
    return features_hwD / jnp.maximum(lengths, 1e-12)

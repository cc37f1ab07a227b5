"""Matches between the patches of two images, and how far they are off.

Geometric: NAVI, as Probe3D evaluates it (El Banani et al. 2024, arXiv:2404.08636; DINOv3,
arXiv:2508.10104, D.3). Semantic: keypoints of SPair-71k (Min et al. 2019).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.ops.interpolate import resize

_ROWS = 4096  # queries compared at a time


class Matches(NamedTuple):
    """Of one pair, best first: places in both images (x, y), points in space, and the score."""

    source_uv: np.ndarray  # [K, 2] in cells of the grid, centres at .5
    target_uv: np.ndarray
    source_xyz: np.ndarray  # [K, 3]
    target_xyz: np.ndarray
    score: np.ndarray  # [K]


def nearest_two(queries_MD, bank_ND) -> tuple[np.ndarray, np.ndarray]:
    """(index [M] of the most similar, cosine distance [M, 2] of the first and second).

    Of equally similar ones the lowest index. Distances are those of Probe3D, 1 - cosine.
    """
    bank_ND = _unit(jnp.asarray(bank_ND))
    if len(bank_ND) < 2:
        raise ValueError("a match needs at least two points in the other image.")
    indexes, distances = [], []
    for first in range(0, len(queries_MD), _ROWS):
        part = np.asarray(queries_MD[first : first + _ROWS])
        fill = min(_ROWS, len(queries_MD)) - len(part)  # one shape, one program
        index_M, distance_M2 = _two(jnp.asarray(np.pad(part, ((0, fill), (0, 0)))), bank_ND)
        indexes.append(np.asarray(index_M)[: len(part)])
        distances.append(np.asarray(distance_M2)[: len(part)])
    return np.concatenate(indexes), np.concatenate(distances)


@jax.jit
def _two(queries_MD, bank_ND):
    cosine_MN = jnp.einsum("md,nd->mn", _unit(queries_MD), bank_ND, precision="highest")
    first_M = jnp.argmax(cosine_MN, axis=1)
    best_M = jnp.max(cosine_MN, axis=1)
    is_first_MN = jnp.arange(len(bank_ND))[None] == first_M[:, None]
    others_MN = jnp.where(is_first_MN, -jnp.inf, cosine_MN)
    return first_M, 1 - jnp.stack([best_M, jnp.max(others_MN, axis=1)], axis=1)


def match_points(
    source_hwD, target_hwD, source_xyz_HW3, target_xyz_HW3, *, num: int, rank: str = "cosine"
) -> Matches:
    """The `num` best matches of the source's points, each to its most similar target point.

    Patches are resized (bicubic) to the grids of points in space; only cells with a depth above 0
    take part. rank: cosine (the paper's words), or ratio, 1 - d1 / d2 (the public code).
    """
    sides = []
    for patches_hwD, xyz_HW3 in ((source_hwD, source_xyz_HW3), (target_hwD, target_xyz_HW3)):
        size = xyz_HW3.shape[:2]
        patches_HWD = resize(
            jnp.asarray(patches_hwD)[None], size, method="bicubic", antialias=False
        )
        there_HW = xyz_HW3[..., 2] > 0
        rows, columns = np.nonzero(there_HW)
        uv_N2 = np.stack([columns + 0.5, rows + 0.5], axis=1)
        sides.append((np.asarray(patches_HWD[0])[there_HW], xyz_HW3[there_HW], uv_N2))
    (features_M, xyz_M, uv_M), (features_N, xyz_N, uv_N) = sides
    index_M, distance_M2 = nearest_two(features_M, features_N)
    score_M = scores(distance_M2, rank)
    best = np.argsort(-score_M, kind="stable")[:num]
    return Matches(
        uv_M[best], uv_N[index_M[best]], xyz_M[best], xyz_N[index_M[best]], score_M[best]
    )


def scores(distance_M2: np.ndarray, rank: str) -> np.ndarray:
    """How much each match is trusted, more is better."""
    if rank == "cosine":
        return 1 - distance_M2[:, 0]
    if rank == "ratio":
        distance_M2 = np.maximum(distance_M2, 1e-9)
        return 1 - distance_M2[:, 0] / distance_M2[:, 1]
    raise ValueError(f"rank={rank!r} is unknown; choose of cosine, ratio.")


def moved(points_N3: np.ndarray, pose_34: np.ndarray) -> np.ndarray:
    """Points after a rotation and translation [R | t]."""
    return points_N3 @ pose_34[:, :3].T + pose_34[:, 3]


def projected(points_N3: np.ndarray, camera_33: np.ndarray) -> np.ndarray:
    """Pixels [N, 2] where a camera sees points."""
    homogeneous = points_N3 @ camera_33.T
    return homogeneous[:, :2] / np.maximum(homogeneous[:, 2:], 1e-9)


def rotation_angle(rotation_33: np.ndarray) -> float:
    """Degrees of a rotation."""
    cosine = (np.trace(np.asarray(rotation_33, np.float64)) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def recall(errors_N: np.ndarray, threshold: float) -> float:
    """Percent of the errors that are below the threshold."""
    return 100.0 * float(np.mean(np.asarray(errors_N) < threshold))


def binned(values_N, places_N, edges) -> list[float]:
    """Means of the values whose place is in [edge, next edge); NaN for none."""
    values_N, places_N = np.asarray(values_N), np.asarray(places_N)
    means = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (places_N >= low) & (places_N < high)
        means.append(float(values_N[inside].mean()) if inside.any() else float("nan"))
    return means


class KeypointErrors(NamedTuple):
    """Of one pair of images, for the keypoints that are seen in both."""

    keypoint: np.ndarray  # [K] its number
    error: np.ndarray  # [K] distance to it, as a share of the image's side over `scale`
    nearest: np.ndarray  # [K] the keypoint that is nearest to the predicted place
    nearest_error: np.ndarray  # [K] distance to that
    places: np.ndarray  # [all, 2] (column, row) of the patch found for every source keypoint


def keypoint_errors(
    source_hwD, target_hwD, source_N3, target_N3, *, image_size: int, scale: float
) -> KeypointErrors:
    """How far the most similar patch of the target is from where each keypoint is.

    Square images of `image_size` pixels; keypoints (x, y, visible) in pixels. The feature of a
    source keypoint is read between the four patches around it, the corners of the grid being the
    corners of the image; the place found is the patch's index over the grid's side, without half a
    patch: both as in Probe3D. scale: the longer side of the object's box over image_size.
    """
    if source_hwD.shape[0] != source_hwD.shape[1] or source_hwD.shape != target_hwD.shape:
        raise ValueError(f"grids of {source_hwD.shape} and {target_hwD.shape} are not two squares.")
    source_hwD, target_hwD = (np.asarray(_unit(jnp.asarray(x))) for x in (source_hwD, target_hwD))
    side = source_hwD.shape[0]
    read_ND = sampled(source_hwD, source_N3[:, :2] / image_size)
    cosine_NP = read_ND @ target_hwD.reshape(side * side, -1).T
    rows, columns = np.divmod(np.argmax(cosine_NP, axis=1), side)
    places_N2 = np.stack([columns, rows], axis=1)
    gaps_NN2 = (places_N2 / side)[:, None] - (target_N3[:, :2] / image_size)[None]
    error_NN = np.linalg.norm(gaps_NN2, axis=-1) / scale
    seen_NN = (source_N3[:, None, 2] * target_N3[None, :, 2]) == 1
    error_NN = np.where(seen_NN, error_NN, 1e3)
    both = np.flatnonzero(np.diagonal(seen_NN))
    return KeypointErrors(
        both,
        np.diagonal(error_NN)[both],
        np.argmin(error_NN[both], axis=1),
        np.min(error_NN[both], axis=1),
        places_N2,
    )


def sampled(map_hwD: np.ndarray, xy_N2: np.ndarray) -> np.ndarray:
    """Values [N, D] at places in 0..1, bilinear; 0 and 1 are the centres of the outer cells."""
    sides = np.array([map_hwD.shape[1], map_hwD.shape[0]]) - 1
    place = xy_N2 * sides
    low = np.floor(place).astype(int)
    value = np.zeros((len(place), map_hwD.shape[-1]), map_hwD.dtype)
    for right in (0, 1):
        for down in (0, 1):
            corner = low + [right, down]
            weight = np.prod(1 - np.abs(place - corner), axis=1)
            inside = np.all((corner >= 0) & (corner <= sides), axis=1)
            x, y = np.clip(corner, 0, sides).T
            value += (weight * inside).astype(map_hwD.dtype)[:, None] * map_hwD[y, x]
    return value


def _unit(features: jax.Array) -> jax.Array:
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)

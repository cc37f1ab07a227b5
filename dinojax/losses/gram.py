"""Gram anchoring: similarities between patches follow a teacher's. DINOv3, arXiv:2508.10104."""

import math

import jax
import jax.numpy as jnp

from dinojax.ops import interpolate

CLIPS = ("none", "both", "teacher", "both_negative")


def gram_loss(
    student_BPD: jax.Array,
    teacher_BPD: jax.Array,
    *,
    normalize: bool = True,
    per_image: bool = True,
    clip: str = "none",
) -> jax.Array:
    """Mean squared difference of two matrices of dot products between patches (section 4).

    per_image: a matrix [P, P] for each leading row; otherwise one matrix of all the patches given,
    which may then also be [N, D]. A matrix per group of images: reshape to [U, N, D] and use
    per_image. normalize: unit-length patches. clip: none | both | teacher, whose negative
    similarities become 0 | both_negative, as teacher, and the student's become 0 where the
    teacher's are negative too, so that two patches that are unlike for both cost nothing: what
    public training code means and, as released, does not do (facebookresearch/dinov3, pull
    request 265). Scalar, float32 at least; gradient through the student alone.

    Raises ValueError for another clip, and for arrays that do not fit per_image.
    """
    if clip not in CLIPS:
        raise ValueError(f"gram.clip={clip!r} is not one of {', '.join(CLIPS)}.")
    same = student_BPD.shape[:-1] == teacher_BPD.shape[:-1]  # channels are summed over
    if not same or (per_image and student_BPD.ndim != 3):
        raise ValueError(
            f"gram.per_image={per_image} with student patches {student_BPD.shape} and teacher"
            f" patches {teacher_BPD.shape}: both must be [B, P, D]"
            + ("." if per_image else " or [N, D].")
        )
    student_gram = _gram(student_BPD, normalize=normalize, per_image=per_image)
    teacher_gram = _gram(
        jax.lax.stop_gradient(teacher_BPD), normalize=normalize, per_image=per_image
    )
    if clip == "both":
        student_gram = jnp.where(student_gram < 0, 0.0, student_gram)
    elif clip == "both_negative":
        student_gram = jnp.where((student_gram < 0) & (teacher_gram < 0), 0.0, student_gram)
    if clip != "none":
        teacher_gram = jnp.where(teacher_gram < 0, 0.0, teacher_gram)
    return jnp.mean((student_gram - teacher_gram) ** 2)


def _gram(patches: jax.Array, *, normalize: bool, per_image: bool) -> jax.Array:
    patches = patches.astype(jnp.promote_types(patches.dtype, jnp.float32))
    if normalize:
        # The maximum inside the root keeps the gradient of a zero patch finite.
        squares = jnp.sum(patches**2, axis=-1, keepdims=True)
        patches = patches / jnp.sqrt(jnp.maximum(squares, 1e-24))
    if not per_image:
        patches = patches.reshape(1, -1, patches.shape[-1])
    return jnp.einsum("bpd,bqd->bpq", patches, patches, precision="highest")


def resize_patches(
    patches_BPD: jax.Array, side: int, *, method: str = "bicubic", antialias: bool = False
) -> jax.Array:
    """Patches of a square grid, row by row, resampled to side x side: [B, side * side, D].

    method: bicubic | bilinear, with PyTorch's sample positions and border rule (interpolate.py).

    Raises ValueError for another method, and when P is not a square number.
    """
    B, P, D = patches_BPD.shape
    side_in = math.isqrt(P)
    if side_in * side_in != P:
        raise ValueError(f"{P} patches are not a square grid; gram crops must be square.")
    if method not in interpolate.KERNELS:
        raise ValueError(f"gram.resize={method!r} is not one of {', '.join(interpolate.KERNELS)}.")
    if side_in == side:
        return patches_BPD.astype(jnp.promote_types(patches_BPD.dtype, jnp.float32))
    grid_BHWD = patches_BPD.reshape(B, side_in, side_in, D)
    resized = interpolate.resize(grid_BHWD, (side, side), method=method, antialias=antialias)
    return resized.reshape(B, side * side, D)


def by_group(pair, masks_BGP, masked_UM, *, tokens: str):
    """A pair of patches [B, G, P, D] as [U, N, D]: of each group all, masked or unmasked ones."""
    num_groups, width = masked_UM.shape[0], pair[0].shape[-1]
    pair = [x.reshape(num_groups, -1, width) for x in pair]
    if tokens == "all":
        return pair
    chosen = masked_UM
    if tokens == "unmasked":
        masks_UN = masks_BGP.reshape(num_groups, -1)
        num_unmasked = masks_UN.shape[1] - chosen.shape[1]
        chosen = jnp.argsort(masks_UN, axis=1, stable=True)[:, :num_unmasked]
    return [jax.vmap(lambda x, i: x.at[i].get(unique_indices=True))(x, chosen) for x in pair]

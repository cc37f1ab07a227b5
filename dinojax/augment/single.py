"""One random-resized, randomly mirrored crop per image, without distortions of colour.

As CLIP-like training sees its images (dino.txt, arXiv:2412.16334). Draws are keyed as those of
views.py: neither the batch size nor the number of devices changes a crop.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.augment import boxes, photometric, resample
from dinojax.augment.views import run_here
from dinojax.ops import rng


@dataclasses.dataclass(frozen=True)
class CropSpec:
    """What `make_crops` needs to know at compile time. Units as in configs/base.py."""

    group_size: int  # V, images whose draws come from one key
    size: int
    area: tuple[float, ...]  # smallest and largest, as aspect
    aspect: tuple[float, ...]
    flip_rate: float
    normalize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_sections(
        cls, *, image: Any, crops: Any, augment: Any, patch_size: int, group_size: int
    ) -> "CropSpec":
        """Of the sections of a config. Raises ValueError for a size that is no whole patches."""
        if crops.global_size % patch_size:
            raise ValueError(
                f"crops.global_size={crops.global_size} is not a multiple of "
                f"model.patch_size={patch_size}."
            )
        return cls(
            group_size=group_size,
            size=crops.global_size,
            area=tuple(map(float, crops.global_area)),
            aspect=tuple(map(float, crops.aspect)),
            flip_rate=augment.flip_rate,
            normalize=image.normalize,
            mean=tuple(map(float, image.mean)),
            std=tuple(map(float, image.std)),
        )


def make_crops(
    key: jax.Array,
    images_BSSC: jax.Array,
    sizes_B2: jax.Array,
    spec: CropSpec,
    *,
    per_group: Callable[[Callable], Callable] = run_here,
) -> jax.Array:
    """Normalised crops [B, H, W, C], float32. key: of the step; sizes_B2: true height and width.

    per_group: as of `views.make_views`. Raises ValueError if the batch is no whole number of
    groups.
    """
    B, V = images_BSSC.shape[0], spec.group_size
    if B % V:
        raise ValueError(f"a batch of {B} images is not a multiple of group_size={V}.")
    split = [x.reshape(B // V, V, *x.shape[1:]) for x in (images_BSSC, sizes_B2)]
    keys_U = rng.group_keys(key, "crop", B // V)
    crops = per_group(jax.vmap(functools.partial(_group_crops, spec=spec)))(keys_U, *split)
    return crops.reshape(B, *crops.shape[2:])


def _group_crops(key, images_VSSC, sizes_V2, *, spec: CropSpec):
    keys_V = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(images_VSSC)))
    draws_VN = jax.vmap(lambda k: jax.random.uniform(k, (boxes.NUM_DRAWS + 1,)))(keys_V)
    return jax.vmap(functools.partial(_crop, spec=spec))(draws_VN, images_VSSC, sizes_V2)


def _crop(draws_N, image_SSC, size_2, *, spec: CropSpec):
    box_4 = boxes.choose_box(draws_N[: boxes.NUM_DRAWS], size_2, area=spec.area, aspect=spec.aspect)
    flip = draws_N[boxes.NUM_DRAWS] < spec.flip_rate
    crop_CHW = resample.cut_crops(image_SSC, box_4[None], flip[None], spec.size)[0]
    if spec.normalize == "per_crop":
        normal_CHW = photometric.normalize_per_crop(crop_CHW)
    else:
        normal_CHW = photometric.normalize_fixed(crop_CHW, mean=spec.mean, std=spec.std)
    return jnp.transpose(normal_CHW, (1, 2, 0))

"""Everything one step sees of its images: crops and masks, from fixed uint8 boxes.

Multi-crop as in DINO (arXiv:2104.14294) with the sizes and rates of DINOv3 (arXiv:2508.10104).
All draws of an image depend on the key of its group and its place there, so neither the batch
size nor the number of devices changes a crop.
"""

import functools
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp

from dinojax.augment import boxes, masks, photometric, resample
from dinojax.augment.spec import NUM_GLOBAL, ViewSpec
from dinojax.ops import interpolate, rng

MAX_CROPS = 1024  # of an image; keeps the places of two images apart
NUM_CROP_DRAWS = boxes.NUM_DRAWS + 1  # the box and the flip


@flax.struct.dataclass
class Views:
    """Normalised crops in float32, as the student sees them, and the masks of the global crops.

    M patches are hidden in each group; their positions count through the group's flattened
    (V G P), ascending.
    """

    global_BGHWC: jax.Array
    local_BLHWC: jax.Array
    gram_BGHWC: jax.Array | None  # None unless crops.gram_size is set
    masks_BGP: jax.Array  # bool, true = hidden
    masked_UM: jax.Array  # int32
    mask_weights_UM: jax.Array  # float32, 1 / number of hidden patches of the same crop
    teacher_BGHWC: jax.Array | None = None  # in the teacher's size; None = as the student's

    @property
    def of_teacher_BGHWC(self) -> jax.Array:
        """The global crops in the size that the teacher sees."""
        return self.global_BGHWC if self.teacher_BGHWC is None else self.teacher_BGHWC


def run_here(fn: Callable) -> Callable:
    return fn


def make_views(
    key: jax.Array,
    images_BSSC: jax.Array,
    sizes_B2: jax.Array,
    spec: ViewSpec,
    *,
    per_group: Callable[[Callable], Callable] = run_here,
) -> Views:
    """Crops and masks of one step. key: of the step. sizes_B2: true (height, width) in the box.

    per_group: how to run a function whose arguments and results all lead with the group axis.
    On several devices give a shard_map over that axis: each device then makes the views of its
    own groups and nothing travels, not even the question whether the last mask is finished.
    Raises ValueError if the batch is not a whole number of groups.
    """
    B, V = images_BSSC.shape[0], spec.group_size
    if B % V:
        raise ValueError(f"a batch of {B} images is not a multiple of group_size={V}.")

    def split(x):
        return x.reshape(B // V, V, *x.shape[1:])

    def merge(x):
        return x.reshape(B, *x.shape[2:])

    streams = [rng.group_keys(key, name, B // V) for name in ("crop", "photometric", "mask")]
    keys_U3 = jnp.stack(streams, axis=1)
    fn = per_group(jax.vmap(functools.partial(_group_views, spec=spec)))
    crops, masks_UVGP, masked_UM, weights_UM = fn(keys_U3, split(images_BSSC), split(sizes_B2))
    return Views(
        global_BGHWC=merge(crops["global"]),
        local_BLHWC=merge(crops["local"]),
        gram_BGHWC=merge(crops["gram"]) if "gram" in crops else None,
        masks_BGP=merge(masks_UVGP),
        masked_UM=masked_UM,
        mask_weights_UM=weights_UM,
        teacher_BGHWC=merge(crops["teacher"]) if "teacher" in crops else None,
    )


def _group_views(keys_3, images_VSSC, sizes_V2, *, spec: ViewSpec):
    """Crops, masks, masked positions and weights of one group. keys_3: crop, photometric, mask."""
    draws_2VKN = _draws(keys_3[:2], images_VSSC.shape[0], spec)
    one_image = jax.vmap(functools.partial(image_crops, spec=spec))
    crops = one_image(draws_2VKN[0], draws_2VKN[1], images_VSSC, sizes_V2)
    masks_RP = masks.group_masks(keys_3[2], spec.masks)
    masked_M, weights_M = masks.mask_indices(masks_RP, num_masked=spec.masks.num_masked)
    masks_VGP = masks_RP.reshape(-1, NUM_GLOBAL, masks_RP.shape[1])
    return crops, masks_VGP, masked_M, weights_M


def _draws(keys_2: jax.Array, num_images: int, spec: ViewSpec) -> jax.Array:
    """Uniform numbers in [0, 1), [2, V, K, N], keyed by purpose, image and crop.

    Both purposes and all crops go through one call: compile time grows with each separate one.
    """
    num_crops = NUM_GLOBAL + spec.num_local
    places_VK = jnp.arange(num_images)[:, None] * MAX_CROPS + jnp.arange(num_crops)[None, :]
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(None, 0))
    keys_2VK = jax.vmap(fold, in_axes=(0, None))(keys_2, places_VK)
    num = max(NUM_CROP_DRAWS, photometric.NUM_DRAWS)
    return jnp.vectorize(lambda k: jax.random.uniform(k, (num,)), signature="()->(n)")(keys_2VK)


def image_crops(
    crop_draws_KN: jax.Array,
    photometric_draws_KN: jax.Array,
    image_SSC: jax.Array,
    size_2: jax.Array,
    *,
    spec: ViewSpec,
) -> dict[str, jax.Array]:
    """All crops of one image: global [G, H, W, C], local [L, H, W, C].

    If asked for also gram, and teacher: the global ones in the size of the teacher. Whoever has
    smaller patches than the crops sees them reduced, after all else was done to them.
    """
    G = NUM_GLOBAL
    choices_K = _choose(photometric_draws_KN, spec)
    globals_G, locals_L = (
        jax.tree.map(lambda x, part=part: x[part], choices_K) for part in (slice(G), slice(G, None))
    )
    cut = functools.partial(_cut, image_SSC, size_2, spec=spec)
    base_GCHW = cut(crop_draws_KN[:G], area=spec.global_area, size=spec.base_size)
    local_LCHW = cut(crop_draws_KN[G:], area=spec.local_area, size=spec.local_size)
    first, second, local = spec.blur_rates
    distort = functools.partial(
        _distort, spec=spec, can_blur=first + second > 0, can_solarize=spec.solarize_rate > 0
    )
    crops = _global_and_gram(base_GCHW, lambda x: distort(globals_G, x), spec)
    local_LCHW = _distort(locals_L, local_LCHW, spec=spec, can_blur=local > 0, can_solarize=False)
    crops["local"] = _normalize(local_LCHW, spec)
    crops = {name: jnp.transpose(x, (0, 2, 3, 1)) for name, x in crops.items()}
    if spec.teacher_reduction != spec.reduction:
        crops["teacher"] = reduced(crops["global"], spec.teacher_reduction)
    return crops | {name: reduced(crops[name], spec.reduction) for name in ("global", "local")}


def reduced(crops_KHWC: jax.Array, factor: int) -> jax.Array:
    """Crops with a side `factor` times smaller, [K, H / factor, W / factor, C], float32; 1: as is.

    Antialiased bilinear: each new pixel is the mean of the old ones, weighted by a triangle that
    ends two new pixels apart, cut off at the border and renormalised; factor 2: (1, 3, 3, 1) / 8.
    """
    if factor == 1:
        return crops_KHWC
    size = crops_KHWC.shape[1] // factor, crops_KHWC.shape[2] // factor
    return interpolate.resize(crops_KHWC, size, method="bilinear", antialias=True)


def _global_and_gram(base_GCHW, distort: Callable, spec: ViewSpec) -> dict[str, jax.Array]:
    """Global crops and, if asked for, gram crops of the same boxes.

    Undistorted gram crops share box and flip only, and the global crop is resized a second time
    before its distortions. Else both are resized from one distorted and normalised crop.
    """
    if spec.gram_size is None:
        return {"global": _normalize(distort(base_GCHW), spec)}
    if spec.gram_distortions:
        done_GCHW = _normalize(distort(base_GCHW), spec)
        sizes = {"global": spec.global_size, "gram": spec.gram_size}
        return {name: _resize(done_GCHW, size, whole=False) for name, size in sizes.items()}
    global_GCHW = distort(_resize(base_GCHW, spec.global_size, whole=True))
    gram_GCHW = _resize(base_GCHW, spec.gram_size, whole=True)
    return {"global": _normalize(global_GCHW, spec), "gram": _normalize(gram_GCHW, spec)}


def _cut(image_SSC, size_2, draws_KN, *, area: tuple, size: int, spec: ViewSpec) -> jax.Array:
    """Random-resized and randomly mirrored crops [K, C, size, size], values 0..255."""
    choose = functools.partial(boxes.choose_box, size_2=size_2, area=area, aspect=spec.aspect)
    boxes_K4 = jax.vmap(choose)(draws_KN[:, : boxes.NUM_DRAWS])
    flips_K = draws_KN[:, boxes.NUM_DRAWS] < spec.flip_rate
    return resample.cut_crops(image_SSC, boxes_K4, flips_K, size)


def _choose(draws_KN, spec: ViewSpec) -> photometric.Choices:
    """The random distortions of all crops of an image: two global ones, then the local ones."""
    first, second, local = spec.blur_rates
    blur_K = jnp.array([first, second] + [local] * spec.num_local)
    solarize_K = jnp.array([0.0, spec.solarize_rate] + [0.0] * spec.num_local)
    return jax.vmap(
        lambda draws, blur, solarize: photometric.choose(
            draws, spec.strengths, blur_rate=blur, solarize_rate=solarize
        )
    )(draws_KN, blur_K, solarize_K)


def _distort(
    choices_K, crops_KCHW, *, spec: ViewSpec, can_blur: bool, can_solarize: bool
) -> jax.Array:
    one = functools.partial(
        photometric.distort,
        strengths=spec.strengths,
        can_blur=can_blur,
        can_solarize=can_solarize,
    )
    return jax.vmap(lambda crop, choices: one(crop, choices))(crops_KCHW, choices_K)


def _resize(crops_KCHW: jax.Array, size: int, *, whole: bool) -> jax.Array:
    return jax.vmap(lambda crop: resample.resize(crop, size, whole=whole))(crops_KCHW)


def _normalize(crops_KCHW: jax.Array, spec: ViewSpec) -> jax.Array:
    if spec.normalize == "per_crop":
        return jax.vmap(photometric.normalize_per_crop)(crops_KCHW)
    fixed = functools.partial(photometric.normalize_fixed, mean=spec.mean, std=spec.std)
    return jax.vmap(fixed)(crops_KCHW)

"""Colour, blur and solarisation of one crop [C, H, W]; float32 values in 0..255 throughout.

The list of operations and their strengths are those of DINOv2 (arXiv:2304.07193) and DINOv3
(arXiv:2508.10104). Every operation takes its factor explicitly and clips to 0..255; `choose` makes
the random choices and `distort` applies them in order. Colour planes come first, so that each
operation works on whole rows of pixels.
"""

import dataclasses

import flax
import jax
import jax.numpy as jnp

# The random draws follow this order: append, never reorder.
JITTER_OPS = ("brightness", "contrast", "saturation", "hue")
NUM_DRAWS = 5 + 2 * len(JITTER_OPS)
GRAY = (0.299, 0.587, 0.114)  # luma of red, green, blue; ITU-R BT.601
EPS = 1e-4  # least standard deviation of values in 0..1, for crops of one colour


@dataclasses.dataclass(frozen=True)
class Strengths:
    """What `choose` may pick: sizes of colour changes, rates, and the blur; see configs/keys/."""

    jitter_rate: float
    brightness: float  # the factor lies in [1 - b, 1 + b]; so for contrast and saturation
    contrast: float
    saturation: float  # three channels only
    hue: float  # the shift lies in [-h, h] of a full turn; three channels only
    grayscale_rate: float  # three channels only
    blur_sigma: tuple[float, float]  # pixels
    blur_kernel: int  # pixels, odd
    solarize_threshold: float

    @property
    def jitter_ops(self) -> tuple[str, ...]:
        """The colour operations that do anything, in the order of JITTER_OPS."""
        sizes = {name: getattr(self, name) for name in JITTER_OPS}
        return tuple(name for name in JITTER_OPS if sizes[name] > 0 and self.jitter_rate > 0)


@flax.struct.dataclass
class Choices:
    """The random choices for one crop; scalars, but for the arrays over colour operations."""

    jitter: jax.Array  # bool: change the colours at all
    factors: jax.Array  # float32, per operation of Strengths.jitter_ops
    order: jax.Array  # int32: the operations (as positions in jitter_ops), first to last
    grayscale: jax.Array  # bool
    blur: jax.Array  # bool
    sigma: jax.Array  # float32, pixels
    solarize: jax.Array  # bool


def choose(draws: jax.Array, strengths: Strengths, *, blur_rate, solarize_rate) -> Choices:
    """The choices for one crop that at least NUM_DRAWS uniform numbers in [0, 1) mean.

    Each has a fixed place: no rate or strength changes what another number decides.
    """
    u = draws
    places = jnp.array([JITTER_OPS.index(name) for name in strengths.jitter_ops], jnp.int32)
    changes = (2 * u[5 + places] - 1) * jnp.array(
        [getattr(strengths, name) for name in strengths.jitter_ops], jnp.float32
    )
    neutral = jnp.array([float(name != "hue") for name in strengths.jitter_ops], jnp.float32)
    low, high = strengths.blur_sigma
    return Choices(
        jitter=u[0] < strengths.jitter_rate,
        factors=neutral + changes,
        order=jnp.argsort(u[5 + len(JITTER_OPS) + places]),
        grayscale=u[1] < strengths.grayscale_rate,
        blur=u[2] < blur_rate,
        sigma=low + u[3] * (high - low),
        solarize=u[4] < solarize_rate,
    )


def distort(
    crop_CHW: jax.Array,
    choices: Choices,
    strengths: Strengths,
    *,
    can_blur: bool,
    can_solarize: bool,
) -> jax.Array:
    """Colour jitter, grayscale, blur, solarise: each where `choices` says so.

    can_blur, can_solarize: False leaves the operation out of the program, where its rate is 0.
    """
    x = crop_CHW
    if strengths.jitter_ops:
        jittered = color_jitter(x, choices.factors, choices.order, ops=strengths.jitter_ops)
        x = jnp.where(choices.jitter, jittered, x)
    if strengths.grayscale_rate > 0:
        x = jnp.where(choices.grayscale, grayscale(x), x)
    if can_blur:
        blurred = gaussian_blur(x, choices.sigma, kernel_size=strengths.blur_kernel)
        x = jnp.where(choices.blur, blurred, x)
    if can_solarize:
        x = jnp.where(choices.solarize, solarize(x, strengths.solarize_threshold), x)
    return x


def color_jitter(
    crop_CHW: jax.Array, factors: jax.Array, order: jax.Array, *, ops: tuple[str, ...]
) -> jax.Array:
    """Apply the named operations, one factor each, in the given order.

    order: a permutation of positions in `ops`. The crops of a batch have different orders, so
    every operation would run at every position. All but hue are one formula, a blend of the crop
    with something gray: each position costs one blend, one hue and a choice. A loop keeps the
    program short, which is what compile time depends on.
    """

    def apply(x, op):
        partner = x
        for i, name in enumerate(ops):
            if name != "hue":
                partner = jnp.where(op == i, _partner(name, x), partner)
        y = _blend(x, partner, factors[op])
        if "hue" in ops:
            i = ops.index("hue")
            y = jnp.where(op == i, adjust_hue(x, factors[i]), y)
        return y, None

    return jax.lax.scan(apply, crop_CHW, order)[0]


def _partner(name: str, crop_CHW: jax.Array) -> jax.Array:
    """What an operation blends a crop with: black, its mean gray, or its gray version."""
    if name == "brightness":
        return jnp.zeros_like(crop_CHW)
    gray = luma(crop_CHW)[None] if crop_CHW.shape[0] == 3 else crop_CHW
    gray = jnp.mean(gray) if name == "contrast" else gray
    return jnp.broadcast_to(gray, crop_CHW.shape)


def adjust_brightness(crop_CHW: jax.Array, factor) -> jax.Array:
    return _blend(crop_CHW, _partner("brightness", crop_CHW), factor)


def adjust_contrast(crop_CHW: jax.Array, factor) -> jax.Array:
    """Blend with the mean gray of the crop; with the mean of all values if not three channels."""
    return _blend(crop_CHW, _partner("contrast", crop_CHW), factor)


def adjust_saturation(crop_CHW: jax.Array, factor) -> jax.Array:
    """Blend with the gray version of the crop; three channels."""
    return _blend(crop_CHW, _partner("saturation", crop_CHW), factor)


def adjust_hue(crop_CHW: jax.Array, shift) -> jax.Array:
    """Turn the hue of HSV by `shift` of a full turn; three channels.

    Value and chroma (largest minus smallest channel) stay; each channel is then a trapezoid of
    the hue angle.
    """
    r, g, b = (crop_CHW[i] for i in range(3))
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(
        value == r, (g - b) / safe, jnp.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    corners_C11 = jnp.array([5.0, 3.0, 1.0])[:, None, None]
    k_CHW = sixths[None] + (6 * shift + corners_C11)
    k_CHW = k_CHW - 6 * jnp.floor(k_CHW / 6)
    ramp_CHW = jnp.clip(jnp.minimum(k_CHW, 4 - k_CHW), 0.0, 1.0)
    return _clip(value[None] - chroma[None] * ramp_CHW)


def luma(crop_CHW: jax.Array) -> jax.Array:
    """Gray values [H, W] of a crop with three channels."""
    r, g, b = (crop_CHW[i] for i in range(3))
    return GRAY[0] * r + GRAY[1] * g + GRAY[2] * b


def grayscale(crop_CHW: jax.Array) -> jax.Array:
    """Three equal channels of gray."""
    return jnp.broadcast_to(_clip(luma(crop_CHW)), crop_CHW.shape)


def gaussian_blur(crop_CHW: jax.Array, sigma, *, kernel_size: int) -> jax.Array:
    """Blur with a sampled Gaussian of odd size; the border mirrors without repeating its edge."""
    rows, columns = (_blur_weights(n, sigma, kernel_size // 2) for n in crop_CHW.shape[1:])
    precision = jax.lax.Precision.HIGHEST
    x = jnp.einsum("chw,xw->chx", crop_CHW, columns, precision=precision)
    return _clip(jnp.einsum("chx,yh->cyx", x, rows, precision=precision))


def _blur_weights(size: int, sigma, reach: int) -> jax.Array:
    """Weights [out, in] of a blur along one axis of `size` pixels, reach < size."""

    def gauss(distance):
        near = jnp.abs(distance) <= reach
        return jnp.where(near, jnp.exp(-0.5 * jnp.square(distance / sigma)), 0.0)

    out_O1, in_1I = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    last = size - 1
    weights_OI = gauss(in_1I - out_O1)
    weights_OI += jnp.where(in_1I > 0, gauss(-in_1I - out_O1), 0.0)  # mirrored at the start
    weights_OI += jnp.where(in_1I < last, gauss(2 * last - in_1I - out_O1), 0.0)
    return weights_OI / jnp.sum(weights_OI, axis=1, keepdims=True)


def solarize(crop_CHW: jax.Array, threshold: float) -> jax.Array:
    """Invert the values at or above the threshold."""
    return jnp.where(crop_CHW >= threshold, 255.0 - crop_CHW, crop_CHW)


def normalize_fixed(crop_CHW: jax.Array, mean: tuple, std: tuple) -> jax.Array:
    """(values / 255 - mean) / std, per channel."""
    mean_C11 = jnp.asarray(mean, jnp.float32)[:, None, None]
    std_C11 = jnp.asarray(std, jnp.float32)[:, None, None]
    return (crop_CHW / 255.0 - mean_C11) / std_C11


def normalize_per_crop(crop_CHW: jax.Array) -> jax.Array:
    """Zero mean and unit standard deviation over all pixels and channels of the crop."""
    x = crop_CHW / 255.0
    x = x - jnp.mean(x)
    return x / jnp.maximum(jnp.sqrt(jnp.mean(x * x)), EPS)


def _blend(x: jax.Array, other: jax.Array, factor) -> jax.Array:
    return _clip(other + factor * (x - other))


def _clip(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0.0, 255.0)

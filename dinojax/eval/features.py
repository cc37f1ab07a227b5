"""Features of a whole source, through the transform of evaluation: no randomness, one compile."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.data.decode import DecodeError
from dinojax.data.example import Source
from dinojax.distributed import process_group
from dinojax.models.convnext import ConvNext
from dinojax.models.vit import Vit
from dinojax.sharding import batch, mesh
from dinojax.sharding.mesh import Layout
from dinojax.weights.preprocess import Preprocessing

# (backbone parameters, images [B, H, W, C]) -> cls [B, D], mean of patches [B, D], patches
Embed = Callable[[dict, Any], tuple[jax.Array, jax.Array, jax.Array]]
# images_BHWC -> (cls [B, D], mean of the patches [B, D])
Apply = Callable[[np.ndarray], tuple]


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resize the short side (antialiased bicubic), cut the centre, scale to 0..1, normalise.

    As the reference's: the long side is rounded down, the offset of the cut rounded to nearest,
    and an image smaller than the cut is centred on zeros before it is normalised.
    """

    resize_size: int  # pixels of the short side
    crop_size: int  # pixels
    normalize: str  # fixed | per_crop
    mean: tuple[float, ...]  # per channel, of values in 0..1; unused by per_crop
    std: tuple[float, ...]

    def __post_init__(self):
        if self.normalize not in ("fixed", "per_crop"):
            raise ValueError(
                f"image.normalize={self.normalize!r} is unknown; choose of fixed, per_crop."
            )

    @classmethod
    def from_sections(cls, *, image, knn) -> "EvalTransform":
        """Built from the config sections `image` and `knn`."""
        return cls(
            resize_size=knn.resize_size,
            crop_size=knn.crop_size,
            normalize=image.normalize,
            mean=tuple(image.mean),
            std=tuple(image.std),
        )

    def __call__(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] of any size to float32 [crop_size, crop_size, C]."""
        channels = pixels_HWC.shape[2]
        if self.normalize == "fixed" and not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"image.mean and image.std have {len(self.mean)} and {len(self.std)} values for "
                f"image.channels={channels}; give one per channel or image.normalize=per_crop."
            )
        return self.preprocessing(pixels_HWC)

    @property
    def out_size(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        return self.crop_size, self.crop_size

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            self.crop_size, self.resize_size, self.normalize, self.mean or None, self.std or None
        )


def fixed_statistics(image) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of a section `image`; empty where each crop has its own."""
    return (tuple(image.mean), tuple(image.std)) if image.normalize == "fixed" else ((), ())


@dataclasses.dataclass(frozen=True)
class _ReadBatch:
    """Batch number -> (images_BHWC, how many are real, {row: why it cannot be read}).

    The last batch is filled with zeros, as are images that cannot be read.
    """

    source: Source
    transform: EvalTransform
    batch_size: int
    own: frozenset[int]  # rows that this process reads; the rest stays zeros

    def __call__(self, number: int) -> tuple[np.ndarray, int, dict[int, str]]:
        first = number * self.batch_size
        indexes = range(first, min(first + self.batch_size, len(self.source)))
        size = self.transform.out_size
        images_BHWC = np.zeros((self.batch_size, *size, self.source.channels), np.float32)
        bad = {}
        for row, index in enumerate(indexes):
            if row not in self.own:
                continue
            try:
                pixels = self.source[index].pixels
            except (DecodeError, OSError) as error:
                bad[row] = str(error)
                continue
            images_BHWC[row] = self.transform(pixels)
        return images_BHWC, len(indexes), bad


def features(
    backbone: Vit | ConvNext, params: dict, images_BHWC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """cls [B, D], mean of patches [B, D] and patches [B, P, D] of a backbone, in float32."""
    images_BHWC = mesh.constrain(images_BHWC, "image", None, None, None)
    found = backbone.apply({"params": params}, [images_BHWC])[0]
    patches_BPD = found.patches.astype(jnp.float32)
    return found.cls.astype(jnp.float32), jnp.mean(patches_BPD, axis=1), patches_BPD


def embed(backbone: Vit | ConvNext, layout: Layout) -> Embed:
    """(backbone parameters, images [B, H, W, C]) -> cls [B, D], mean of patches, patches; float32.

    Compiled once per image size; B is filled up to a multiple of the data shards. Of several
    processes each needs its own rows of the images alone (batch.own_rows); the results may lie on
    the devices of all (process_group.fetch).
    """

    apply = process_group.together(jax.jit(functools.partial(features, backbone)))

    def embed(params, images_BHWC):
        num = len(images_BHWC)
        fill = -num % layout.num_shards
        images_BHWC = np.pad(images_BHWC, ((0, fill), (0, 0), (0, 0), (0, 0)))
        found = apply(params, batch.from_own_rows(layout, images_BHWC))
        return tuple(x[:num] for x in found) if fill else found

    return embed


def extract(
    apply_fn: Apply,
    source: Source,
    *,
    transform: EvalTransform,
    batch_size: int,
    num_threads: int = 2,
    prefetch: int = 2,
    shared: bool = True,
) -> dict:
    """{"cls": float32 [N, D], "patches": float32 [N, D] (their mean), "labels", "kept", "bad"}.

    As `extract_outputs`, of a function that gives these two.
    """
    return extract_outputs(
        lambda images_BHWC: dict(zip(("cls", "patches"), apply_fn(images_BHWC), strict=True)),
        source,
        transform=transform,
        batch_size=batch_size,
        num_threads=num_threads,
        prefetch=prefetch,
        shared=shared,
    )


def extract_outputs(
    apply_fn: Callable[[np.ndarray], dict[str, Any]],
    source: Source,
    *,
    transform: EvalTransform,
    batch_size: int,
    num_threads: int = 2,
    prefetch: int = 2,
    shared: bool = True,
    may_be_empty: bool = False,
) -> dict:
    """{name: float32 [N, ...]} of what `apply_fn` gives for images, "labels", "kept" and "bad".

    labels: int32 [N] or None. kept: int64 [N], indexes of the images in the source; those that
    cannot be read are left out and stand in bad, {index: reason}. Every batch has `batch_size`
    images, so `apply_fn` compiles once; the fill of the last batch is dropped. Rows are in the
    order of the source whatever the batch size. Raises ValueError if no image can be read, unless
    it may be empty.

    shared: `apply_fn` works on the devices of all processes, so that each reads its rows alone.
    """
    if batch_size < 1:
        raise ValueError(f"knn.batch_size={batch_size} must be at least 1.")
    own = frozenset(batch.own_rows(batch_size) if shared else range(batch_size))
    read = _ReadBatch(source=source, transform=transform, batch_size=batch_size, own=own)
    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(read)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0
    )
    rows: dict[str, list[np.ndarray]] = {}
    bad: dict[int, str] = {}
    for number, (images_BHWC, num_real, reasons) in enumerate(batches.to_iter_dataset(options)):
        bad |= {number * batch_size + row: reason for row, reason in reasons.items()}
        for name, value in apply_fn(images_BHWC).items():
            value = process_group.fetch(value).astype(np.float32, copy=False)
            rows.setdefault(name, []).append(value[:num_real])
    if shared:
        everywhere = process_group.current().settle("bad images", list(bad.items()), _all_of)
        bad = dict(sorted((index, reason) for index, reason in everywhere))
    if len(bad) == len(source) and not may_be_empty:
        raise ValueError(f"none of {len(bad)} images can be read, the first: {bad[0]}")
    kept = np.array([index for index in range(len(source)) if index not in bad], np.int64)
    return {
        **{name: _of(kept, np.concatenate(parts)) for name, parts in rows.items()},
        "labels": None if source.labels is None else source.labels[kept],
        "kept": kept,
        "bad": bad,
    }


def _of(kept: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows if len(kept) == len(rows) else rows[kept]  # no copy where nothing is bad


def _all_of(lists: Sequence[list]) -> list:
    return [item for items in lists for item in items]


def _unit(features_ND: np.ndarray) -> np.ndarray:
    norms_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    return features_ND / np.maximum(norms_N1, np.float32(1e-12))


# knn.features: which of the extracted arrays are compared; `both` gives each the same say.
FEATURES = {
    "cls": lambda found: found["cls"],
    "patches": lambda found: found["patches"],
    "both": lambda found: np.concatenate([_unit(found["cls"]), _unit(found["patches"])], axis=1),
}


def selected(found: dict, name: str) -> np.ndarray:
    """The features [N, D or 2D] that `knn.features` names, from what `extract` returned."""
    if name not in FEATURES:
        raise ValueError(f"knn.features={name!r} is unknown; choose of {', '.join(FEATURES)}.")
    return FEATURES[name](found)

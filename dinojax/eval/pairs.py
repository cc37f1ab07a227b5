"""Retrieval both ways: of every image its captions among all, of every caption its image.

Recall at k as on COCO and Flickr: an image counts if any of its captions is among the k nearest.
"""

import dataclasses

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.data.sources import SOURCES, kind_of, read_options, source_name
from dinojax.data.tiles import tiles
from dinojax.eval.aligned import Aligned, open_aligned
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.features import EvalTransform
from dinojax.eval.network import Network

KEYS = {
    "every": {
        "default": None,
        "says": "steps of a text stage; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "images": {
        "default": "",
        "says": "images with captions of any storage; empty = val of the tiles where "
        "these train; [ours]",
    },
    "source": {
        "default": "",
        "says": "kind of these, as data.source; empty = what the path looks like; [ours]",
    },
    "captions": {
        "default": 5,
        "says": "of an image, the first so many; [P] COCO",
        "limits": (1, 1024),
    },
    "merge": {
        "default": False,
        "says": "equal captions are one text of all images that have it; False as on COCO; [ours]",
    },
    "batch_size": {"default": 64, "says": "images per pass; [ours]", "limits": (1, 1_048_576)},
}
RECALLS = (1, 5, 10)
BLOCK = 1024  # rows of similarities held at a time


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Of images with captions."""

    aligned: Aligned
    images: Source
    captions: int
    merge: bool
    transform: EvalTransform
    batch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.images,)

    def measure(self, network: Network) -> Measured:
        found = self.aligned.images(
            network, self.images, self.transform, batch_size=self.batch_size
        )
        told = [self.images.encoded(i).captions[: self.captions] for i in found["kept"].tolist()]
        texts, pairs_P2 = numbered(told, merge=self.merge)
        if not texts:
            raise ValueError("pairs.images has no captions; see docs/text.md for where they are.")
        texts_ME = self.aligned.texts(network, texts)
        to_text_N, to_image_M = ranks(found["pooled"], texts_ME, pairs_P2)
        hits = {f"pairs/text@{k}": to_text_N < k for k in RECALLS}
        hits |= {f"pairs/image@{k}": to_image_M < k for k in RECALLS}
        return Measured(
            {column: 100.0 * float(hit.mean()) for column, hit in hits.items()},
            num=len(to_text_N),
            told=f"{len(to_text_N)} images with {len(texts)} captions",
            samples={column: 100.0 * hit for column, hit in hits.items()},
        )


def ranks(
    images_NE: np.ndarray, texts_ME: np.ndarray, pairs_P2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(texts of others at least as near as an image's nearest own [N], the same of images [M]).

    pairs: (image, text) that belong together, each text in one at least. Images without a text are
    left out of the first. What is as near counts against, so that equal vectors are no success.
    """
    unit_NE, unit_ME = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (images_NE, texts_ME)
    )
    rows_P, columns_P = pairs_P2.T
    own_M = np.full(len(unit_ME), -np.inf)
    np.maximum.at(own_M, columns_P, np.einsum("pe,pe->p", unit_NE[rows_P], unit_ME[columns_P]))
    to_text, nearer_M = [], np.zeros(len(unit_ME), np.int64)
    for first in range(0, len(unit_NE), BLOCK):
        cosines_BM = unit_NE[first : first + BLOCK] @ unit_ME.T
        is_own_BM = np.zeros(cosines_BM.shape, bool)
        here = (rows_P >= first) & (rows_P < first + BLOCK)
        is_own_BM[rows_P[here] - first, columns_P[here]] = True
        best_B = np.where(is_own_BM, cosines_BM, -np.inf).max(axis=1)
        beside_BM = ~is_own_BM & (cosines_BM >= best_B[:, None] - _SLACK)
        to_text.append(beside_BM.sum(axis=1)[np.isfinite(best_B)])
        nearer_M += (~is_own_BM & (cosines_BM >= own_M[None] - _SLACK)).sum(axis=0)
    return np.concatenate(to_text), nearer_M


def numbered(told: list[tuple[str, ...]], *, merge: bool) -> tuple[list[str], np.ndarray]:
    """(texts, int [P, 2] of (image, text) that belong together) of images with captions.

    merge: captions that are equal, letter by letter, are one text of all images that have it.
    """
    texts: list[str] = []
    numbers: dict[str, int] = {}
    pairs = []
    for image, captions in enumerate(told):
        for caption in captions:
            number = numbers.setdefault(caption, len(texts)) if merge else len(texts)
            if number == len(texts):
                texts.append(caption)
            pairs.append((image, number))
    return texts, np.unique(np.array(pairs, np.int64).reshape(-1, 2), axis=0)


_SLACK = 1e-6  # of a cosine in float32, summed in another order


def build(section, setting: Setting) -> Pairs | None:
    aligned = open_aligned(setting)
    if aligned is None:
        return None
    config = setting.config
    channels = config.image.channels
    if section.images:
        kind = section.source or kind_of(section.images)
        if kind not in SOURCES:
            raise ConfigError(f"pairs.source={kind!r} is unknown; choose of {', '.join(SOURCES)}.")
        options = {"key": "pairs.images", "options": read_options(config.data)}
        images = SOURCES[kind](path=section.images, channels=channels, **options)
    elif source_name(config.data) == "tiles":
        images = tiles(channels=channels, split="val")
    else:
        return None
    chosen = section.captions, section.merge, setting.transform, section.batch_size
    return Pairs(aligned, images, *chosen)

"""Zero-shot classification: images go to the class whose prompts are nearest (text/zeroshot.py)."""

import dataclasses

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.data.sources import open_at, read_options
from dinojax.data.tiles import TileSource
from dinojax.eval.aligned import Aligned, lines, open_aligned
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.features import EvalTransform
from dinojax.eval.network import Network
from dinojax.text.zeroshot import class_vectors, prompts

KEYS = {
    "every": {
        "default": None,
        "says": "steps of a text stage; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "images": {
        "default": "",
        "says": "labelled images of any storage; empty = those of knn.query; [ours]",
    },
    "classes": {
        "default": "",
        "says": "FILE with the name of a class a line, in the order of labels, or imagenet; "
        "empty = names of the data; [ours]",
    },
    "templates": {
        "default": "a photo of {}",
        "says": "a template with {}, FILE with one a line, or imagenet (80 of CLIP); [P]",
    },
    "batch_size": {"default": 64, "says": "images per pass; [ours]", "limits": (1, 1_048_576)},
}


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Of labelled images, with the prompts of every class."""

    aligned: Aligned
    query: Source
    names: tuple[str, ...]
    templates: tuple[str, ...]
    transform: EvalTransform
    batch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.query,)

    def measure(self, network: Network) -> Measured:
        classes_CE = self._classes(network)
        found = self.aligned.images(network, self.query, self.transform, batch_size=self.batch_size)
        ranks_N = ranks(found["pooled"], classes_CE, found["labels"])
        hits = {f"zeroshot/top{k}": ranks_N < k for k in (1, 5) if k < len(self.names)}
        return Measured(
            {column: 100.0 * float(hit.mean()) for column, hit in hits.items()},
            num=len(ranks_N),
            told=f"{len(ranks_N)} images, {len(self.names)} classes, "
            f"{len(self.templates)} templates",
            samples={column: 100.0 * hit for column, hit in hits.items()},
        )

    def _classes(self, network: Network) -> np.ndarray:
        texts = self.aligned.texts(network, prompts(self.names, self.templates))
        return np.asarray(class_vectors(texts, len(self.names)))


def ranks(images_NE: np.ndarray, classes_CE: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """How many other classes are at least as near as the true one, int [N]; 0 = it is the nearest.

    A class that is as near counts against, so that equal vectors are no success.
    """
    unit_NE = images_NE / np.maximum(np.linalg.norm(images_NE, axis=1, keepdims=True), 1e-12)
    cosines_NC = unit_NE @ classes_CE.T
    own_N1 = np.take_along_axis(cosines_NC, labels_N[:, None].astype(int), axis=1)
    return (cosines_NC >= own_N1).sum(axis=1) - 1


def build(section, setting: Setting) -> ZeroShot | None:
    aligned = open_aligned(setting)
    if aligned is None:
        return None
    config = setting.config
    if section.images:
        options = {"channels": config.image.channels, "options": read_options(config.data)}
        query = open_at(section.images, key="zeroshot.images", **options)
    else:
        pair = setting.labelled()
        if pair is None:
            return None
        query = pair[1]
    if not query.class_names or query.labels is None:
        raise ConfigError(f"zeroshot.images={section.images} has no labels to compare with.")
    names = lines(section.classes, "classes") if section.classes else _names(query)
    if len(names) != len(query.class_names):
        raise ConfigError(
            f"zeroshot.classes={section.classes} has {len(names)} names and the images "
            f"{len(query.class_names)} classes; give one a line, in their order."
        )
    templates = lines(section.templates, "templates")
    return ZeroShot(
        aligned, query, tuple(names), tuple(templates), setting.transform, section.batch_size
    )


def _names(query: Source) -> list[str]:
    """Names of folders as words; of tiles, what their photographs show."""
    if isinstance(query, TileSource):
        return list(query.subjects)
    return [name.replace("_", " ") for name in query.class_names]

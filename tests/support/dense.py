"""Stand-ins for rows of the table that judge patches: folders, networks and settings."""

import dataclasses
from types import SimpleNamespace

import numpy as np
from PIL import Image

from dinojax.data.example import Example
from dinojax.eval.baselines import raw_pixels
from dinojax.eval.contract import Setting
from dinojax.eval.features import EvalTransform

PATCH = 8
TRANSFORM = EvalTransform(32, 32, "fixed", (0.5,) * 3, (0.25,) * 3)
COLOURS = np.array([(220, 40, 40), (40, 200, 60), (50, 60, 230)], np.uint8)


def section(module, **values):
    defaults = {key: row["default"] for key, row in module.KEYS.items()}
    return SimpleNamespace(**{**defaults, **values})


def setting(**knn):
    knn = SimpleNamespace(**{"bank": "", "query": "", **knn})
    data = SimpleNamespace(max_bad_share=0.0, mixture=(), path="")
    config = SimpleNamespace(knn=knn, image=SimpleNamespace(channels=3), data=data)
    return Setting(config, TRANSFORM, PATCH)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def colour_folder(root, num=4, shape=(5, 6), names=None):
    """Images of coloured squares of a patch, and their labels."""
    rng = np.random.default_rng(1)
    for number in range(num):
        cells = rng.integers(0, 3, shape).repeat(PATCH, axis=0).repeat(PATCH, axis=1)
        name = f"{number if names is None else names[number]}.png"
        save(root / "images" / name, COLOURS[cells])
        save(root / "maps" / name, cells.astype(np.uint8))
    return str(root)


def noise(params, images_BHWC):
    """Patches that say nothing, the same for the same image."""
    batch, height, width, _ = images_BHWC.shape
    seeds = np.abs(images_BHWC.sum(axis=(1, 2, 3)) * 1000).astype(np.int64)
    grid = height // PATCH * (width // PATCH)
    return None, None, np.stack([np.random.default_rng(s).normal(size=(grid, 8)) for s in seeds])


def constant(params, images_BHWC):
    patches = raw_pixels(PATCH)(images_BHWC)[2]
    return None, None, np.ones_like(patches)


def changed(own, **values):
    return SimpleNamespace(**{**vars(own), **values})


class Textures:
    """Images of noise, each another."""

    channels, labels, class_names, notes = 3, None, (), ()

    def __init__(self, num=3, size=96):
        self.fingerprint = f"textures {num} {size}"
        self._images = np.random.default_rng(0).integers(0, 256, (num, size, size, 3), np.uint8)

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        pixels = np.asarray(Image.fromarray(self._images[index]).resize((192, 192)))
        return Example(pixels, None, str(index))

    def read(self, index, box_size=None):
        return self[index]


def with_images():
    return dataclasses.replace(setting(), images=Textures)

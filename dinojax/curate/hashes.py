"""Perceptual hashes by the library ImageHash: a cheap first pass over near-duplicates."""

import importlib
from typing import Any

import numpy as np
from PIL import Image


def need_imagehash() -> Any:
    """The library; ModuleNotFoundError that names the extra."""
    try:
        return importlib.import_module("imagehash")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "perceptual hashes need ImageHash: pip install 'dinojax[curate]'"
        ) from None


def hash_of(pixels_HWC: np.ndarray) -> str:
    """The 64-bit pHash of uint8 pixels in 16 hexadecimal digits; not of 3 bands: of their mean."""
    if pixels_HWC.shape[2] == 3:
        image = Image.fromarray(pixels_HWC)
    else:
        image = Image.fromarray(np.rint(pixels_HWC.mean(axis=2)).astype(np.uint8))
    return str(need_imagehash().phash(image))


def numbers(texts: list[str]) -> np.ndarray:
    """uint64 [N] of hashes."""
    return np.array([int(text, 16) for text in texts], np.uint64)

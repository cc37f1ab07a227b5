"""Captions of the tiles of 16 photographs (tiles.py), so that text alignment needs no download.

A caption names the subject of the
photograph, the colour that most of the tile's pixels have, how light it is and how rough; each tile
has four of them. Colour, lightness and roughness are measured, so a caption is true of its tile.
"""

import numpy as np
from PIL import Image

# Photograph -> its subject, in the words of a caption.
SUBJECTS = {
    "astronaut": "an astronaut",
    "chelsea": "a cat",
    "coffee": "a cup of coffee",
    "hubble_deep_field": "galaxies in space",
    "ihc": "stained tissue",
    "retina": "the retina of an eye",
    "rocket": "a rocket at launch",
    "motorcycle_left": "a motorcycle",
    "brick": "a brick wall",
    "grass": "grass",
    "gravel": "gravel",
    "camera": "a man with a camera",
    "coins": "old coins",
    "page": "printed text",
    "china": "a temple",
    "flower": "a flower",
}
# Largest hue in degrees of each colour, in their order round the circle.
HUES = ((18, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (255, "blue"), (330, "purple"))
GREY = 0.18  # saturation below which a pixel has no colour
DARK, LIGHT = 85, 170  # mean brightness of 0..255 below and above which a tile is dark or light
SMOOTH, ROUGH = 4.0, 14.0  # mean step between neighbours' brightness, of 0..255


def captions_of(pixels_HWC: np.ndarray, subject: str) -> tuple[str, ...]:
    """What is true of a tile, in four sentences."""
    colour, light, texture = colour_of(pixels_HWC), lightness_of(pixels_HWC), texture_of(pixels_HWC)
    return (
        f"a photo of {subject}",
        f"a {light} {colour} picture of {subject}",
        f"{texture} {colour} detail of {subject}",
        f"{subject}, {colour}, {texture} and {light}",
    )


def colour_of(pixels_HWC: np.ndarray) -> str:
    """The colour that most pixels have: a hue's, or grey."""
    if pixels_HWC.shape[2] == 1:
        return "grey"
    hsv = np.asarray(Image.fromarray(pixels_HWC).convert("HSV"), np.float64)
    hues, saturations = hsv[..., 0] * 360 / 255, hsv[..., 1] / 255
    number = np.searchsorted([limit for limit, _ in HUES], hues) % len(HUES)
    counts = np.bincount(number[saturations >= GREY].ravel(), minlength=len(HUES))
    if counts.sum() < hues.size / 2:
        return "grey"
    return HUES[int(counts.argmax())][1]


def lightness_of(pixels_HWC: np.ndarray) -> str:
    mean = float(pixels_HWC.mean())
    return "dark" if mean < DARK else "light" if mean > LIGHT else "plain"


def texture_of(pixels_HWC: np.ndarray) -> str:
    grey_HW = pixels_HWC.astype(np.float64).mean(axis=2)
    steps = [np.abs(np.diff(grey_HW, axis=axis)).mean() for axis in (0, 1)]
    step = float(np.mean(steps))
    return "smooth" if step < SMOOTH else "rough" if step > ROUGH else "fine"

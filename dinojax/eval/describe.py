"""Which of some words each patch of an image is nearest to: `dinojax describe`.

Cosines of the vision head's patches with the second half of the words' vectors, as in
open-vocabulary segmentation of the whole image (text/dense.py).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinojax.data.decode import decode
from dinojax.eval.text_model import TextModel, load
from dinojax.files.drafts import open_new
from dinojax.text import dense
from dinojax.text.zeroshot import class_vectors, patch_half, prompts

TEMPLATE = "a photo of {}"
SIDE = 480  # pixels of the picture's image, its longer side
ROW = 26  # pixels of a line of the legend
# Colours that stay apart for most eyes (Okabe and Ito), then others.
COLORS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178)),
    *((213, 94, 0), (204, 121, 167), (120, 120, 120), (140, 86, 75), (148, 103, 189)),
)


@dataclasses.dataclass(frozen=True)
class Description:
    """What `describe` finds. best: number of the nearest word of every patch, [rows, columns]."""

    words: tuple[str, ...]
    cosines: np.ndarray  # [rows, columns, words]
    image: np.ndarray  # uint8 [H, W, C], as it was read

    @property
    def best(self) -> np.ndarray:
        return self.cosines.argmax(axis=-1)

    def shares(self) -> list[tuple[str, float, float]]:
        """(word, share of the patches that are nearest to it, its largest cosine), most first."""
        counts = np.bincount(self.best.ravel(), minlength=len(self.words)) / self.best.size
        rows = zip(self.words, counts.tolist(), self.cosines.max(axis=(0, 1)).tolist(), strict=True)
        return sorted(rows, key=lambda row: -row[1])


def describe(
    model: TextModel,
    path: str | Path,
    words: Sequence[str],
    *,
    template: str = TEMPLATE,
    size: int | None = None,
) -> Description:
    """The nearest word of every patch of an image file.

    size: pixels of the short side as the network sees it, None = twice its crops in training.
    Raises ValueError for fewer than two words or one given twice, and errors of decoding.
    """
    names = tuple(word.strip() for word in words if word.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"--words {','.join(words)}: give two or more words, each once.")
    spec = model.networks.backbone.spec
    data = Path(path).read_bytes()
    pixels_HWC = decode(data, name=str(path), channels=spec.channels)
    own = model.preprocessing
    side = size or 2 * (own.side if own.crop_size is not None else 224)
    seen = dataclasses.replace(own, crop_size=None, rule="short", resize_size=side, pad_size=None)
    images_1HWC = dense.stretch(jnp.asarray(seen(pixels_HWC))[None], spec.patch_size)
    texts = jnp.asarray(model.texts(prompts(names, [template])))
    classes_CE = class_vectors(patch_half(texts), len(names))
    patches_1RCE = model.patches(images_1HWC)
    found = dense.cosines(patches_1RCE[0], classes_CE)
    return Description(names, np.asarray(found), pixels_HWC)


def picture(found: Description) -> Image.Image:
    """The image, the same under the colours of its words, and what the colours mean."""
    pixels = found.image if found.image.shape[2] == 3 else found.image[:, :, :1].repeat(3, axis=2)
    image = Image.fromarray(pixels[:, :, :3])
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    size = width, height
    image = image.resize(size, Image.Resampling.BICUBIC)
    colors = np.array([COLORS[i % len(COLORS)] for i in range(len(found.words))], np.uint8)
    map_ = Image.fromarray(colors[found.best]).resize(size, Image.Resampling.NEAREST)
    words = found.shares()
    sheet = Image.new("RGB", (2 * size[0] + 10, size[1] + ROW * len(words) + 10), "white")
    sheet.paste(image, (0, 0))
    sheet.paste(Image.blend(image.convert("L").convert("RGB"), map_, 0.6), (size[0] + 10, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for row, (word, share, cosine) in enumerate(words):
        top = size[1] + 10 + row * ROW
        color = tuple(colors[found.words.index(word)].tolist())
        draw.rectangle((4, top, 24, top + ROW - 8), fill=color)
        told = f"{word}: {100 * share:.0f} % of patches, largest cosine {cosine:.2f}"
        draw.text((34, top), told, fill="black", font=font)
    return sheet


def describe_command(
    image: str,
    *,
    words: str,
    weights: str,
    backbone: str | None,
    vocabulary: str | None,
    stage: str | None,
    step: int | None,
    template: str,
    size: int | None,
    out: str | None,
) -> None:
    """Draw it to a PNG and say the words' shares."""
    model = load(weights, backbone=backbone, words=vocabulary, stage=stage, step=step)
    found = describe(model, image, words.split(","), template=template, size=size)
    place = Path(out or f"{Path(image).stem}-words.png")
    with open_new(place) as file:
        picture(found).save(file, format="PNG")
    rows, columns = found.best.shape
    print(f"{image}: {rows} x {columns} patches, {model.origin}")
    for word, share, cosine in found.shares():
        print(f"  {word:24s} {100 * share:5.1f} % of patches, largest cosine {cosine:.3f}")
    print(f"picture: {place}")

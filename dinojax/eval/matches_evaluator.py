"""Matches between two images as a picture. DINOv3's released notebook; DINOv2, figure 10."""

import dataclasses
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.data.sources import open_at
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.dense_pixels import resized
from dinojax.eval.foreground import fit_pca, rainbow
from dinojax.eval.matching import centres, match_patches, spread_out
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, patch_maps, values_of
from dinojax.eval.similarity import similarity_map
from dinojax.viz.label_colors import side_by_side, value_colors
from dinojax.viz.match_lines import match_lines

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "images": {"default": "", "says": 'folder of the images; "" = none; [ours]'},
    "left": {"default": 0, "says": "number of the left image in it; [ours]", "limits": (0, None)},
    "right": {"default": 1, "says": "number of the right image; [ours]", "limits": (0, None)},
    "size": {"default": 768, "says": "pixels of the height; [R]", "limits": (8, 4096)},
    "spacing": {
        "default": 0.13,
        "says": "least distance of matches drawn, of the height; [R]",
        "limits": (0, 1),
    },
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two images of a folder."""

    images: Source
    section: Any
    transform: Any
    patch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.images,)

    def measure(self, network: Network) -> Measured:
        """matches/mutual: percent of patches of the left image whose match has it as its own match.

        Pictures: the matches, the colours of both images by one PCA, and how alike the middle
        patch of the left image is to all of both.
        """
        numbers = self.section.left, self.section.right
        stored = [self.images[number].pixels for number in numbers]
        views = [self._view(pixels) for pixels in stored]
        maps = [
            patch_maps(
                network, as_seen(self.transform, v)[None], patch_size=self.patch_size, batch_size=1
            )[0]
            for v in views
        ]
        matches = match_patches(*maps, mutual=True)
        places = [
            centres(n, m.shape[:2], v.shape[:2])
            for n, m, v in zip((matches.left, matches.right), maps, views, strict=True)
        ]
        kept = spread_out(places[0], self.section.spacing * self.section.size)
        pca = fit_pca(np.concatenate([m.reshape(-1, m.shape[-1]) for m in maps]))
        colours = [np.round(255 * rainbow(pca, m)).astype(np.uint8) for m in maps]
        mutual = 100.0 * len(matches.left) / (maps[0].shape[0] * maps[0].shape[1])
        return Measured(
            {"matches/mutual": mutual},
            num=len(matches.left),
            told=f"images {numbers[0]} and {numbers[1]}: {len(matches.left)} mutual matches",
            pictures={
                "matches": match_lines(
                    views[0], views[1], places[0][kept] - 0.5, places[1][kept] - 0.5
                ),
                "colours": side_by_side([views, colours, self._alike(maps)]),
            },
        )

    def _view(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """At the height asked for, both sides whole patches, as the notebook makes it."""
        height, width, _ = pixels_HWC.shape
        rows = max(self.section.size // self.patch_size, 1)
        columns = max(int(width * self.section.size / (height * self.patch_size)), 1)
        return resized(pixels_HWC, (rows * self.patch_size, columns * self.patch_size))

    def _alike(self, maps: list[np.ndarray]) -> list[np.ndarray]:
        """Cosine of the left image's middle patch to all patches of both."""
        middle = maps[0].shape[0] // 2, maps[0].shape[1] // 2
        own = similarity_map(maps[0], middle)
        chosen = maps[0][middle][None, None]
        stacked = np.concatenate([chosen, maps[1].reshape(1, -1, maps[1].shape[-1])], axis=1)
        other = similarity_map(stacked, (0, 0))[0, 1:].reshape(maps[1].shape[:2])
        return [value_colors(cosines, 0.0, 1.0) for cosines in (own, other)]


def build(section, setting: Setting) -> Pair | None:
    section = values_of(section, KEYS)
    if not section.images:
        return None
    channels = setting.config.image.channels
    images = open_at(section.images, channels=channels, key="matches.images")
    if (most := max(section.left, section.right)) >= len(images):
        raise ConfigError(
            f"matches: image {most} is not there; {section.images} holds {len(images)}."
        )
    return Pair(images, section, setting.transform, setting.patch_size)

"""What evaluations of images without labels share: where the images are from, and the first few."""

import dataclasses
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Example, Source
from dinojax.data.quarantine import read_all
from dinojax.data.sources import open_at
from dinojax.distributed import process_group
from dinojax.eval.contract import Setting


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Images of a source, the first section.num of a fixed order; subclasses measure on them."""

    images: Source
    section: Any
    setting: Setting

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.images,)

    @property
    def patch_size(self) -> int:
        return self.setting.patch_size

    @property
    def transform(self) -> Any:
        return self.setting.transform

    def read(self, seed: int, what: str) -> list[tuple[int, Example]]:
        """(index, image) in the order that the seed gives; `what` is what messages name.

        Images that cannot be read are replaced, listed, and limited in number.
        """
        order = np.random.default_rng(seed).permutation(len(self.images))[: self.section.num]
        found = read_all(
            self.images,
            order,
            what=what,
            max_share=self.setting.max_bad_share,
            path=self.setting.bad_list if process_group.current().is_main else None,
        )
        return [(int(index), example) for index, example in zip(order, found, strict=True)]


def open_photographs(section: Any, setting: Setting, name: str) -> Source | None:
    """The folder that a section names, or the images of training, or None.

    Raises ConfigError for a section.size that is not whole patches.
    """
    size = getattr(section, "size", 0)
    if size % setting.patch_size:
        raise ConfigError(
            f"{name}.size={size} is no multiple of the patch of {setting.patch_size} pixels."
        )
    if section.images:
        channels = setting.config.image.channels
        return open_at(section.images, channels=channels, key=f"{name}.images")
    return None if setting.images is None else setting.images()

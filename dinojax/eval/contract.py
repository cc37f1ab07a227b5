"""What an evaluation is: built from its section of the config, it measures a frozen network.

When it runs is apart from this: train/periodic.py (every n steps, and at the end of a stage),
eval/evaluate.py (on a finished checkpoint) and eval/follow.py (on each new one of a run).
"""

import dataclasses
import importlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dinojax.config import Config
from dinojax.data.example import Source
from dinojax.data.quarantine import KNN_FILE
from dinojax.eval.features import EvalTransform
from dinojax.eval.labelled_layouts import open_labelled_pair
from dinojax.eval.network import Network
from dinojax.eval.suite import SUITE
from dinojax.eval.text_model import TextModel
from dinojax.files.drafts import open_new


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    values: Mapping[str, float]  # column, with the row's prefix -> value
    num: int = 0  # images (or patches, pairs) that the main value is taken over
    told: str = ""  # of what there was to measure, in words
    samples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Column -> array [n, ...] of what its value is a statistic of; for the bootstrap interval."""
    statistic: Callable[[np.ndarray], float] = np.mean
    """Of such an array, and of one made of the same rows drawn with replacement: the value."""
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Name -> uint8 [H, W, 3]."""


def draw(folder: Path, name: str, measured: Measured) -> None:
    """Write the pictures of a measurement, each to `folder`/`name`-PICTURE.png."""
    for picture, pixels_HWC in measured.pictures.items():
        folder.mkdir(parents=True, exist_ok=True)
        with open_new(folder / f"{name}-{picture}.png") as file:
            Image.fromarray(pixels_HWC).save(file, format="PNG")


class Evaluation(Protocol):
    """What the function `build` of an evaluation's file returns."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """What it reads; what is left out of these is told when a run begins."""

    def measure(self, network: Network) -> Measured:
        """The same for the same network, however often and beside whatever it is called.

        It draws from seeds of its own, changes nothing of the network, and gives equal results on
        any number of devices. Of several processes all call it and get the same values.
        """


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an evaluation is built from besides its section."""

    config: Config  # all of it; of weights without a run: the defaults, with what is known of them
    transform: EvalTransform  # of images to what the network sees; of weights their Preprocessing
    patch_size: int  # pixels
    images: Callable[[], Source] | None = None  # of training, opened; None if there are none
    directory: Path | None = None  # of the run; receives a list of images that cannot be read
    text: TextModel | None = None  # of weights that hold one
    _labelled: list = dataclasses.field(default_factory=list)

    @property
    def max_bad_share(self) -> float:
        """Of images that cannot be read."""
        return self.config.data.max_bad_share

    @property
    def bad_list(self) -> Path | None:
        """File that lists images that cannot be read."""
        return self.directory / KNN_FILE if self.directory else None

    def labelled(self) -> tuple[Source, Source] | None:
        """(images to learn from, images to be judged by): knn.bank and knn.query; None without.

        Raises ValueError for paths that hold no labelled images.
        """
        if not self._labelled:  # listing a large folder takes a while
            config = self.config
            found = open_labelled_pair(config.data, config.knn, channels=config.image.channels)
            self._labelled.append(found)
        return self._labelled[0]


def build(name: str, setting: Setting) -> Evaluation | None:
    """The evaluation of a row, or None where there are no data for it. Reads no image yet.

    Raises ValueError for data and settings that do not go together.
    """
    row = SUITE[name]
    section: Any = getattr(setting.config, row.section)
    return importlib.import_module(row.module).build(section, setting)


def build_asked(setting: Setting, *, besides: Collection[str] = ()) -> dict[str, Evaluation]:
    """Those that the config asks for and that have data, in the table's order.

    besides: names of some that are built whether or not they are asked for.
    """
    values = setting.config.values()
    asked = [name for name, row in SUITE.items() if name in besides or row.is_asked(values)]
    built = {name: build(name, setting) for name in asked}
    return {name: evaluation for name, evaluation in built.items() if evaluation is not None}

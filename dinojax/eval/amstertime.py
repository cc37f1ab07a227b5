"""Evaluation on AmsterTime (Yildiz et al., arXiv:2203.16291): places in archives and today.

Below `amstertime.path` lie new/ and old/ as published, a street view and an archival image of
each of 1,231 places under one number. Each image searches the images of the other kind, in which
one is right: the mean of 1 / rank over both directions, of the whole ranking. Nothing is
downloaded.
"""

import dataclasses
from pathlib import Path

import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.eval import met, retrieval
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.features import EvalTransform
from dinojax.eval.listed import listed
from dinojax.eval.network import Network

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "path": {"default": "", "says": "folder of new/ and old/; [ours]"},
}
NUM_PAIRS = 1231  # as published
EXTENSIONS = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class AmsterTime:
    """Images of the same index show the same place."""

    old: Source
    new: Source
    transform: EvalTransform
    batch_size: int

    @property
    def sources(self) -> tuple[Source, Source]:
        return self.old, self.new

    def measure(self, network: Network) -> Measured:
        """Columns amstertime/map and amstertime/first (the first is right), in percent."""
        old_ND, new_ND = (self._unit(network, source) for source in self.sources)
        similarities_NN = old_ND @ new_ND.T
        relevant = [
            retrieval.ranking(x) == np.arange(len(x))[:, None]
            for x in (similarities_NN, similarities_NN.T)
        ]
        relevant_QN = np.concatenate(relevant)
        mean, (first,) = retrieval.reciprocal_ranks(relevant_QN, ks=(1,))
        told = f"{len(self.old)} pairs, both ways"
        if len(self.old) != NUM_PAIRS:
            told += f" (published: {NUM_PAIRS})"
        ranks_Q = 1.0 + relevant_QN.argmax(axis=1)
        # A pair asks twice; pairs are what was drawn.
        samples_N2 = (100.0 / ranks_Q).reshape(2, -1).T
        values = {"amstertime/map": 100.0 * mean, "amstertime/first": 100.0 * first}
        return Measured(
            values, num=len(relevant_QN), told=told, samples={"amstertime/map": samples_N2}
        )

    def _unit(self, network: Network, source: Source) -> np.ndarray:
        found = network.extract(source, self.transform, ("cls",), batch_size=self.batch_size)
        if found["bad"]:
            raise ValueError(f"an image cannot be read: {next(iter(found['bad'].values()))}")
        return met.unit(found["cls"].astype(np.float64))


def open_pairs(root: Path, channels: int) -> tuple[Source, Source]:
    """(old, new), in the order of their numbers. Raises ConfigError for a folder without pairs."""
    found = {}
    for kind in ("old", "new"):
        folder = root / kind
        if not folder.is_dir():
            raise ConfigError(f"amstertime.path={root} has no folder {kind}/.")
        names = [p.name for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS]
        found[kind] = {Path(name).stem: name for name in sorted(names)}
    alone = sorted(found["old"].keys() ^ found["new"].keys())
    if alone or not found["old"]:
        raise ConfigError(
            f"amstertime.path={root}: {len(alone)} numbers are in one of old/ and new/ alone "
            f"({', '.join(alone[:5])}); {len(found['old'])} are in old/."
        )
    order = sorted(found["old"])
    old, new = (
        listed(root / kind, [found[kind][stem] for stem in order], channels)
        for kind in ("old", "new")
    )
    return old, new


def build(section, setting: Setting) -> AmsterTime | None:
    """The row `amstertime` of the table; None without a path."""
    if not section.path:
        return None
    old, new = open_pairs(Path(section.path), setting.config.image.channels)
    return AmsterTime(old, new, setting.transform, setting.config.knn.batch_size)

"""Copy detection (Copydays; DINO, arXiv:2104.14294, 4.2.2): the original of a changed image.

Below `copies.path` lie original/ and strong/ as published; a changed image 200301.jpg is a copy of
200300.jpg: all but the last two digits agree. A descriptor is cls beside the patches' generalised
mean (power 4), whitened where there are images that are no originals (copies.distractors).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.data.sources import open_at
from dinojax.eval import features, met, retrieval
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.listed import listed
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import values_of
from dinojax.weights.preprocess import Preprocessing

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "path": {"default": "", "says": "folder of original/ and strong/; [ours]"},
    "distractors": {
        "default": "",
        "says": 'images that are no originals, which whiten and distract; "" = none; [ours]',
    },
    "size": {"default": 320, "says": "pixels of a square, as DINO; [ours]", "limits": (8, 16_384)},
    "batch_size": {"default": 32, "says": "images per pass; [ours]", "limits": (1, 1_048_576)},
}
NUM = {"original": 157, "strong": 229}  # as published
POWER, LEAST = 4, 1e-6  # of the generalised mean


@dataclasses.dataclass(frozen=True)
class Copies:
    """copies_Q: the index of each changed image's original."""

    originals: Source
    changed: Source
    distractors: Source | None
    copies_Q: np.ndarray
    transform: Preprocessing
    batch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        others = () if self.distractors is None else (self.distractors,)
        return (self.originals, self.changed, *others)

    def measure(self, network: Network) -> Measured:
        """Columns copies/map (by trapezoids) and copies/first (the first is right), in percent."""
        found = [self._descriptors(network, source) for source in self.sources]
        if self.distractors is not None:
            axes = met.fit_whitening(found[2], found[2].shape[1])
            found = [axes(rows) for rows in found]
        originals, changed, *others = (met.unit(rows.astype(np.float64)) for rows in found)
        ranks_QN = retrieval.ranking(changed @ np.concatenate([originals, *others]).T)
        roles_QN = np.zeros(ranks_QN.shape, np.int8)
        roles_QN[np.arange(len(roles_QN)), self.copies_Q] = retrieval.HARD
        aps = retrieval.evaluate(ranks_QN, roles_QN, "hard").average_precisions
        samples = {
            "copies/map": 100.0 * aps,
            "copies/first": 100.0 * (ranks_QN[:, 0] == self.copies_Q),
        }
        told = f"{len(aps)} changed images in {ranks_QN.shape[1]}"
        return Measured(
            {name: float(np.mean(rows)) for name, rows in samples.items()},
            num=len(aps),
            told=told,
            samples=samples,
        )

    def _descriptors(self, network: Network, source: Source) -> np.ndarray:
        def apply(images_BHWC):
            out = network.outputs(images_BHWC, ("cls", "patches"))
            return {"both": jnp.concatenate([out["cls"], generalised_mean(out["patches"])], -1)}

        transform: Any = self.transform
        found = features.extract_outputs(
            apply, source, transform=transform, batch_size=self.batch_size
        )
        if found["bad"]:
            raise ValueError(f"an image cannot be read: {next(iter(found['bad'].values()))}")
        return found["both"]


def generalised_mean(patches_BPD):
    """[B, D]: mean of the fourth powers of what is positive, to the power 1/4."""
    powers = jnp.maximum(jnp.asarray(patches_BPD), LEAST) ** POWER
    return jnp.mean(powers, axis=1) ** (1 / POWER)


def open_copies(root: Path, channels: int) -> tuple[Source, Source, np.ndarray]:
    """(originals, changed images, index of each one's original).

    Raises ConfigError for a folder that is not there and a changed image without an original.
    """
    names: dict[str, list[str]] = {}
    for kind in NUM:
        if not (root / kind).is_dir():
            raise ConfigError(f"copies.path={root} has no folder {kind}/.")
        names[kind] = sorted(p.name for p in (root / kind).iterdir() if p.suffix == ".jpg")
    places = {Path(name).stem[:-2]: index for index, name in enumerate(names["original"])}
    lost = [name for name in names["strong"] if Path(name).stem[:-2] not in places]
    if lost or not names["strong"]:
        raise ConfigError(
            f"copies.path={root}: {len(names['strong'])} images are in strong/, and"
            f" {len(lost)} of them have no original ({', '.join(lost[:3])})."
        )
    counts = {kind: len(found) for kind, found in names.items()}
    notes = (f"Copydays: {counts} found, {NUM} published",) if counts != NUM else ()
    originals, changed = (
        dataclasses.replace(listed(root / kind, names[kind], channels), notes=notes) for kind in NUM
    )
    copies_Q = np.array([places[Path(name).stem[:-2]] for name in names["strong"]])
    return originals, changed, copies_Q


def build(section, setting: Setting) -> Copies | None:
    section = values_of(section, KEYS)
    if not section.path:
        return None
    if section.size % setting.patch_size:
        raise ConfigError(
            f"copies.size={section.size} is no multiple of the patch of {setting.patch_size}"
            " pixels."
        )
    channels, own = setting.config.image.channels, setting.transform
    originals, changed, copies_Q = open_copies(Path(section.path), channels)
    distractors = None
    if section.distractors:
        distractors = open_at(section.distractors, channels=channels, key="copies.distractors")
    size = (section.size, section.size)
    transform = Preprocessing(
        None, size, own.normalize, own.mean or None, own.std or None, rule="exact"
    )
    return Copies(originals, changed, distractors, copies_Q, transform, section.batch_size)

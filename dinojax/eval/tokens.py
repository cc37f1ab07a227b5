"""What tokens of fixed images have in common: whether patches keep their place or turn into cls.

DINOv3, arXiv:2508.10104, section 4 and figure 5: over long training the cosine of cls and patches
rises while dense results fall. No labels; a number of this project, for checkpoints of one run.
"""

import dataclasses

import numpy as np

from dinojax.distributed import process_group
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import values_of
from dinojax.eval.photographs import Photographs, open_photographs

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "images": {"default": "", "says": 'folder of images; "" = those of training; [ours]'},
    "num": {
        "default": 256,
        "says": "images, the first of a fixed order; [ours]",
        "limits": (1, None),
    },
    "batch_size": {"default": 32, "says": "images per pass; [ours]", "limits": (1, 1_048_576)},
}
SEED = 7131  # of the order of images; part of the number's meaning


@dataclasses.dataclass(frozen=True)
class Tokens(Photographs):
    """The images of a source that are looked at, through the transform of evaluation."""

    def measure(self, network: Network) -> Measured:
        """Columns tokens/NAME: those of `of_image`, averaged over images, and tokens/rankme."""
        found = [example for _, example in self.read(SEED, "tokens")]
        size = self.section.batch_size
        rows: list[dict[str, float]] = []
        cls: list[np.ndarray] = []
        for first in range(0, len(found), size):
            part = [self.transform(example.pixels) for example in found[first : first + size]]
            blank = [np.zeros_like(part[0])] * (size - len(part))  # one program for all batches
            cls_BD, _, patches_BPD = (
                process_group.fetch(x)[: len(part)] for x in network(np.stack(part + blank))
            )
            height, width = (side // self.patch_size for side in part[0].shape[:2])
            grid = (height, width) if height * width == patches_BPD.shape[1] else None
            rows += [of_image(c, p, grid) for c, p in zip(cls_BD, patches_BPD, strict=True)]
            cls += [*cls_BD]
        samples = {f"tokens/{name}": np.array([row[name] for row in rows]) for name in rows[0]}
        values = {name: float(np.mean(column)) for name, column in samples.items()}
        values["tokens/rankme"] = rankme(np.stack(cls))
        return Measured(values, num=len(rows), told=f"{len(rows)} images", samples=samples)


def of_image(cls_D, patches_PD, grid: tuple[int, int] | None) -> dict[str, float]:
    """Numbers of one image, float64.

    cls_patch: mean cosine of cls and patches. patch_patch: of pairs of different patches.
    rank: effective rank exp(entropy) of the spectrum of the patches' cosines, 1 to P.
    top_channel: share of the largest channel in the patches' mean squares.
    neighbours, locality: cosine of patches side by side in the grid, and less patch_patch; without
    a grid (of patches that are no cut of the image) they are left out.
    """
    patches_PD = np.asarray(patches_PD, np.float64)
    squares_D = np.mean(patches_PD**2, axis=0)
    unit_PD, unit_D = _unit(patches_PD), _unit(np.asarray(cls_D, np.float64))
    cosines_PP = unit_PD @ unit_PD.T
    num = len(cosines_PP)
    pairs = (cosines_PP.sum() - np.trace(cosines_PP)) / max(num * (num - 1), 1)
    values = {
        "cls_patch": float(np.mean(unit_PD @ unit_D)),
        "patch_patch": float(pairs),
        "rank": effective_rank(np.linalg.eigvalsh(cosines_PP)),
        "top_channel": float(squares_D.max() / max(squares_D.sum(), 1e-300)),
    }
    if grid is not None and num > 1:
        unit_hwD = unit_PD.reshape(*grid, -1)
        beside = [
            np.sum(unit_hwD[1:] * unit_hwD[:-1], axis=-1).ravel(),
            np.sum(unit_hwD[:, 1:] * unit_hwD[:, :-1], axis=-1).ravel(),
        ]
        values["neighbours"] = float(np.mean(np.concatenate(beside)))
        values["locality"] = values["neighbours"] - values["patch_patch"]
    return values


def effective_rank(spectrum_K) -> float:
    """exp of the entropy of a spectrum that is divided by its sum (Roy & Vetterli 2007)."""
    share_K = np.clip(np.asarray(spectrum_K, np.float64), 0.0, None)
    share_K = share_K / max(share_K.sum(), 1e-300)
    share_K = share_K[share_K > 0]
    return float(np.exp(-np.sum(share_K * np.log(share_K))))


def rankme(cls_ND) -> float:
    """RankMe (Garrido et al., arXiv:2210.02885): effective rank of the singular values."""
    return effective_rank(np.linalg.svd(np.asarray(cls_ND, np.float64), compute_uv=False))


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors_ND, axis=-1, keepdims=True)
    return vectors_ND / np.maximum(lengths, 1e-12)


def build(section, setting: Setting) -> Tokens | None:
    section = values_of(section, KEYS)
    images = open_photographs(section, setting, "tokens")
    return None if images is None else Tokens(images, section, setting)

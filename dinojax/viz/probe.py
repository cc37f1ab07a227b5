"""The same few images through the ema again and again: pictures over time and their drift."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dinojax.data.quarantine import KNN_FILE, read_all
from dinojax.distributed import process_group
from dinojax.files.drafts import open_new
from dinojax.viz.pictures import patch_sheet, true_colors

NUM_IMAGES = 6


class Probe:
    """Images spread over a source, looked at whenever the ema is evaluated.

    source: indexable, its items have `pixels`. transform: pixels to the network's input.
    directory receives patches-STEP.png (PCA and similarity to the middle patch). mean, std: of the
    transform where they are fixed. max_bad_share: of images that cannot be read and are replaced.
    """

    def __init__(
        self,
        source,
        transform: Callable,
        directory: Path,
        *,
        patch_size: int,
        max_bad_share: float = 1.0,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
    ):
        self._source, self._transform = source, transform
        self._max_bad_share, self._mean, self._std = max_bad_share, mean, std
        self._directory, self._patch_size = directory, patch_size
        self._images: np.ndarray | None = None

    def look(self, network: Callable, step: int) -> dict[str, float]:
        """Draw the sheet of a step; scalars {"probe/drift"} from the second look on.

        network: normalised images [B, H, W, C] -> (cls, mean of patches, patches [B, P, D]).
        Drift: root mean squared difference of the cosines between patches to those of the look
        before, over pairs of different patches of one image; 0 (same) to 2.
        """
        if self._images is None:
            self._images = self._read()
        patches_BPD = process_group.fetch(network(self._images)[2])
        if not process_group.current().is_main:
            return {}
        rows, columns = (side // self._patch_size for side in self._images.shape[1:3])
        path = self._directory / f"patches-{step:08d}.png"
        images = true_colors(self._images, self._mean, self._std)
        patch_sheet(path, images, patches_BPD, grid=(rows, columns))
        before = self._before(step)
        # Every look stays on disk: a run may be killed after a look and continue from before it.
        with open_new(self._directory / f"look-{step:08d}.npz") as file:
            np.savez(file, patches=patches_BPD)
        # A stage that looks at larger images has other patches, which compare with nothing before.
        if before is None or before.shape != patches_BPD.shape:
            return {}
        return {"probe/drift": drift(before, patches_BPD)}

    def _read(self) -> np.ndarray:
        num = len(self._source)
        picked = np.linspace(0, num - 1, min(NUM_IMAGES, num)).astype(int)
        examples = read_all(
            self._source,
            picked,
            what="pictures",
            max_share=self._max_bad_share,
            path=self._directory.parent / KNN_FILE if process_group.current().is_main else None,
        )
        return np.stack([self._transform(example.pixels) for example in examples])

    def _before(self, step: int) -> np.ndarray | None:
        """Patches [B, P, D] of the last look before a step."""
        looks = {int(path.stem[5:]): path for path in self._directory.glob("look-*.npz")}
        earlier = [number for number in looks if number < step]
        if not earlier:
            return None
        with np.load(looks[max(earlier)]) as saved:
            return saved["patches"]


def drift(before_BPD: np.ndarray, after_BPD: np.ndarray) -> float:
    """Root mean squared difference of the cosines between different patches of one image."""
    difference_BPP = _cosines(after_BPD) - _cosines(before_BPD)
    others_PP = ~np.eye(before_BPD.shape[1], dtype=bool)
    return float(np.sqrt(np.mean(difference_BPP[:, others_PP] ** 2)))


def _cosines(patches_BPD: np.ndarray) -> np.ndarray:
    values_BPD = np.asarray(patches_BPD, np.float64)
    norms_BP1 = np.linalg.norm(values_BPD, axis=-1, keepdims=True)
    unit_BPD = values_BPD / np.maximum(norms_BP1, 1e-12)
    return np.einsum("bpd,bqd->bpq", unit_BPD, unit_BPD)

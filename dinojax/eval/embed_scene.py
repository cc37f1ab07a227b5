"""Features of every patch of a scene, window by window into a GeoTIFF with a band per channel."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinojax.data.geotiff import written
from dinojax.data.scene import Scene, open_scene
from dinojax.eval.embed import LAYER
from dinojax.eval.scene_windows import Seen, border_of, places, predictions
from dinojax.models.vit import VitSpec
from dinojax.models.zoo import Spec
from dinojax.weights.load import Backbone

PATCHES = 32  # of a window's side, where nobody says


@dataclasses.dataclass(frozen=True)
class SceneJob:
    """What is computed of a scene, and how it is cut and read."""

    output: str = "patches"  # or layer=N
    window: int | None = None  # pixels of a side, a multiple of the patch; None = 32 patches
    batch_size: int = 64  # windows per forward pass, over all devices
    value_range: tuple[float, ...] = ()  # LOW, HIGH of all bands or of each
    bands: tuple[int, ...] = ()  # those that are read, from 1 on; () = all

    def layer(self, spec: Spec) -> int | None:
        """Number of the block, None = the features themselves. Raises ValueError for neither."""
        match = LAYER.fullmatch(self.output)
        if match is None and self.output != "patches":
            raise ValueError(f"--outputs {self.output}: of a scene give patches, or one layer=N.")
        if match is not None and not isinstance(spec, VitSpec):
            raise ValueError(
                f"--outputs {self.output}: stages of a ConvNeXt have grids of their own; of a "
                "scene give patches, those of the last one."
            )
        if match is not None and not -spec.depth <= int(match[1]) < spec.depth:
            last = spec.depth - 1
            raise ValueError(f"--outputs {self.output}: this backbone has blocks 0 to {last}.")
        return None if match is None else int(match[1]) % spec.depth

    def size(self, patch_size: int) -> int:
        """Pixels of a window's side. Raises ValueError for no multiple of the patch."""
        size = PATCHES * patch_size if self.window is None else self.window
        if size < patch_size or size % patch_size or self.batch_size < 1:
            raise ValueError(
                f"--window {size}, --batch-size {self.batch_size}: a window is a multiple of the "
                f"patch of {patch_size} pixels, a batch at least one of them."
            )
        return size


def embed_scene(
    backbone: Backbone, path: str, out: str | Path, job: SceneJob, origin: str = ""
) -> Path:
    """Write `out`/NAME.tif, float32 [D, H // p, W // p] with p pixels a patch; its path.

    A patch with a pixel of nodata is NaN, which is the nodata of the file. Raises ValueError before
    anything is computed for what does not fit, and for a file that exists.
    """
    layer, patch = job.layer(backbone.spec), backbone.spec.patch_size
    size = job.size(patch)
    scene = open_scene(path, job.bands)
    place = _checked(backbone, scene, job, Path(out) / f"{Path(path).stem}.tif")
    spread = backbone.over(jax.local_devices())

    def features(images_BSSC):
        if layer is None:
            return spread(images_BSSC).patches
        return spread.intermediate(images_BSSC, [layer])[0].patches

    seen = Seen(scene, backbone.preprocessing, job.value_range)
    whole = scene.height // patch * patch, scene.width // patch * patch
    grid = places(*whole, size=size, border=border_of(size, patch))
    told = {"weights": origin, **dataclasses.asdict(job), "patch_size": patch, "window": size}
    kind: dict[str, Any] = {"bands": backbone.spec.width, "dtype": "float32", "nodata": np.nan}
    cells = size // patch
    place.parent.mkdir(parents=True, exist_ok=True)
    with written(place, scene, **kind, step=patch, tags=told) as write:
        options = {"size": size, "batch_size": job.batch_size}
        for at, known_SS, found_PD in predictions(seen, grid, features, **options):
            known_hw = np.all(known_SS.reshape(cells, patch, cells, patch), axis=(1, 3))
            found_hwD = np.where(known_hw[..., None], found_PD.reshape(cells, cells, -1), np.nan)
            if at.inside(known_hw, patch).any():
                corner = at.rows[0] // patch, at.columns[0] // patch
                write(corner, at.inside(found_hwD, patch))
    return place


def _checked(backbone: Backbone, scene: Scene, job: SceneJob, place: Path) -> Path:
    """The file to write. Raises ValueError for a scene that does not fit, and where it exists."""
    scene.check(backbone.spec.channels, job.value_range, key="--value-range")
    backbone.preprocessing.check_statistics(backbone.spec.channels)
    if min(scene.height, scene.width) < backbone.spec.patch_size:
        raise ValueError(f"{scene}: smaller than a patch of {backbone.spec.patch_size} pixels.")
    if place.exists():
        raise ValueError(f"{place} exists; remove it, or give another --out.")
    return place

"""`dinojax task run NAME`: maps of images by a head that was trained."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data.decode import decode
from dinojax.files.drafts import open_new
from dinojax.tasks import names
from dinojax.tasks.judge import map_of
from dinojax.tasks.network import TaskNetwork, check_backbone
from dinojax.tasks.train import WEIGHTS, saved_task
from dinojax.viz.label_colors import label_colors, side_by_side, value_colors
from dinojax.weights import fingerprint, run
from dinojax.weights.tensors import open_tensors


def load(task: str, weights: str, backbone: str | None = None):
    """(network, variables of its head). backbone: where it lies now, None = where it lay.

    Raises ConfigError for a head of another task, ValueError for a backbone with other features.
    """
    directory, told, settings = saved_task(weights)
    if told["task"] != task:
        raise ConfigError(f"--weights {weights} is a head of {told['task']}, not of {task}.")
    path = backbone or told["backbone"]
    loaded = run.load(path)
    check_backbone(loaded, path)
    settings.check(task, loaded.spec.patch_size)
    fingerprint.check(fingerprint.features(loaded), told["features"], f"--backbone {path}")
    network = TaskNetwork(task, settings, loaded, told["outputs"])
    shapes = jax.eval_shape(lambda: nn.meta.unbox(network.new(jax.random.key(0))))
    place = directory / WEIGHTS
    variables, _ = names.read(open_tensors(place), shapes, source=str(place))
    return network, variables


def run_task(
    task: str, *, weights: str, images: Sequence[str], out: str, backbone: str | None = None
) -> list[Path]:
    """Write the map of every image to `out`, and a picture of it; the paths of the maps.

    depth, canopy: NAME.npy, metres float32 [H, W]; segment: NAME.png, classes. All images are read
    before anything is written.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is no folder; use another.")
    stems = [Path(image).stem for image in images]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise ConfigError(f"--image: two files are called {twice[0]}; run them one after another.")
    network, variables = load(task, weights, backbone)
    channels = network.backbone.spec.channels
    read = [decode(Path(i).read_bytes(), name=str(i), channels=channels) for i in images]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for stem, pixels in zip(stems, read, strict=True):
        found = map_of(network, variables, pixels)
        written.append(_write(folder, stem, found, is_classes=task == "segment"))
        colours = label_colors(found) if task == "segment" else value_colors(found, *_range(found))
        with open_new(folder / f"{stem}-picture.png") as file:
            sheet = side_by_side([(pixels, colours)])
            Image.fromarray(sheet).save(file, format="PNG")
        print(f"{written[-1]}: {_told(task, found)}")
    return written


def _write(folder: Path, stem: str, found: np.ndarray, *, is_classes: bool) -> Path:
    path = folder / (f"{stem}.png" if is_classes else f"{stem}.npy")
    with open_new(path) as file:
        if is_classes:
            kind = np.uint8 if found.max() < 256 else np.uint16
            Image.fromarray(found.astype(kind)).save(file, format="PNG")
        else:
            np.save(file, found.astype(np.float32))
    return path


def _range(found: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(found, (2, 98))
    return float(low), float(high)


def _told(task: str, found: np.ndarray) -> str:
    if task != "segment":
        return f"{found.min():.2f} to {found.max():.2f} m, median {np.median(found):.2f} m"
    classes, counts = np.unique(found, return_counts=True)
    shares = sorted(zip(counts / found.size, classes, strict=True), reverse=True)[:5]
    return ", ".join(f"class {number} {100 * share:.0f} %" for share, number in shares)

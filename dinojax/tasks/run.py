"""`dinojax task run NAME`: maps, or boxes, of images by a head that was trained."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn
from PIL import Image

from dinojax.config import ConfigError
from dinojax.data.decode import ReadOptions, decode
from dinojax.data.scene import Scene, is_scene, open_scene
from dinojax.files.drafts import open_new
from dinojax.tasks import names
from dinojax.tasks.judge import map_of
from dinojax.tasks.network import TaskNetwork, check_backbone
from dinojax.tasks.run_boxes import write_boxes
from dinojax.tasks.scene_map import Mapped, map_scene, scene_picture
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
    check_backbone(loaded, path, settings.head)
    settings.check(task, loaded.spec.patch_size)
    fingerprint.check(fingerprint.features(loaded), told["features"], f"--backbone {path}")
    network = TaskNetwork(task, settings, loaded, told["outputs"])
    shapes = jax.eval_shape(lambda: nn.meta.unbox(network.new(jax.random.key(0))))
    place = directory / WEIGHTS
    variables, _ = names.read(open_tensors(place), shapes, source=str(place))
    return network, variables


@dataclasses.dataclass(frozen=True)
class Reading:
    """How stored values become pixels."""

    value_range: tuple[float, ...] = ()  # LOW, HIGH of all bands or of each; () = as in training
    bands: tuple[int, ...] = ()  # of scenes, those that are read, from 1 on; () = all


def run_task(
    task: str,
    *,
    weights: str,
    images: Sequence[str],
    out: str,
    backbone: str | None = None,
    reading: Reading = Reading(),
) -> list[Path]:
    """Write the map or boxes of every image to `out`, and a picture; the paths of the former.

    depth, canopy: NAME.npy, metres float32 [H, W]; segment: NAME.png, classes; of scenes
    (data/scene.py) NAME.tif; detect: NAME.json, COCO's results. All images and headers are read
    before anything is written.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is no folder; use another.")
    stems = [Path(image).stem for image in images]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise ConfigError(f"--image: two files are called {twice[0]}; run them one after another.")
    scenes = {image: open_scene(image, reading.bands) for image in images if is_scene(image)}
    for image in scenes:
        if Path(image).resolve() == (folder / f"{Path(image).stem}.tif").resolve():
            raise ConfigError(f"--out {out}: the map would replace {image}; use another.")
    if scenes and task == "detect":
        raise ConfigError(f"--image {next(iter(scenes))} is a scene; detect takes images.")
    if task == "detect" and reading.value_range:
        raise ConfigError("--value-range is not read by detect; leave it out.")
    if not scenes and reading.bands:
        raise ConfigError("--bands are read by scenes; none of --image is one.")
    network, variables = load(task, weights, backbone)
    channels = network.backbone.spec.channels
    ends = reading.value_range or network.settings.value_range
    for scene in scenes.values():
        scene.check(channels, ends, key="--value-range")
    options = ReadOptions(value_range=ends)
    read = {i: _pixels(i, channels, options) for i in images if i not in scenes}
    folder.mkdir(parents=True, exist_ok=True)
    if task == "detect":
        places = [(folder / s, read[i]) for s, i in zip(stems, images, strict=True)]
        return write_boxes(network, variables, weights, places)
    written = []
    for stem, image in zip(stems, images, strict=True):
        if image in scenes:
            mapped = map_scene(network, variables, scenes[image], folder / f"{stem}.tif", ends)
            written.append(mapped.path)
            told = _told_of_scene(scenes[image], mapped)
            picture = scene_picture(mapped, scenes[image], ends)
        else:
            found = map_of(network, variables, read[image])
            written.append(_write(folder, stem, found, is_classes=task == "segment"))
            told, picture = _told(task, found), _picture(task, read[image], found)
        with open_new(folder / f"{stem}-picture.png") as file:
            Image.fromarray(picture).save(file, format="PNG")
        print(f"{written[-1]}: {told}")
    return written


def _pixels(image: str, channels: int, options: ReadOptions) -> np.ndarray:
    data = Path(image).read_bytes()
    return decode(data, name=image, channels=channels, options=options)


def _picture(task: str, pixels: np.ndarray, found: np.ndarray) -> np.ndarray:
    colours = label_colors(found) if task == "segment" else value_colors(found, *_range(found))
    return side_by_side([(pixels, colours)])


def _told_of_scene(scene: Scene, mapped: Mapped) -> str:
    pixels = scene.width * scene.height
    told = [f"{100 * (1 - mapped.known / pixels):.1f} % nodata"]
    if not scene.crs:
        told.append("without a CRS, as the scene")
    if mapped.classes:
        rows = sorted(mapped.classes.items(), key=lambda row: -row[1])[:5]
        told += [f"class {n} {100 * count / mapped.known:.0f} %" for n, count in rows]
    elif mapped.known:
        told.append(f"{mapped.low:.2f} to {mapped.high:.2f} m")
    return ", ".join(told)


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

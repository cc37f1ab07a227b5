"""Patches of objects matched between views of known geometry: NAVI (Jampani et al. 2023).

Below `navi.path` lie OBJECT/SCENE/{images,depth}/ID.{jpg,png} and annotations.json as published.
DINOv3, arXiv:2508.10104, D.3, as Probe3D (El Banani et al. 2024, arXiv:2404.08636) evaluates it: a
view and another one of its object, cut to the object; each point on it goes to its most similar
point there, the best matches count, and an error is a distance in space. Pairs are drawn from
sorted names by a generator of ours: the public code lists files in the order of the disk.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dinojax.config import ConfigError
from dinojax.data import fields
from dinojax.data.encoded import EncodedSource
from dinojax.data.example import Source
from dinojax.eval import correspondence
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.listed import listed
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import as_seen, patch_maps, values_of
from dinojax.weights import pixels

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "path": {"default": "", "says": "folder of OBJECT/SCENE/images/; [ours]"},
    "scenes": {
        "default": "wild",
        "says": "wild (other places and light) | multiview (one camera, one place); [P] wild",
        "choices": ("wild", "multiview"),
    },
    "every_view": {
        "default": 4,
        "says": "one of so many views is matched to another one; [P] D.3",
        "limits": (1, None),
    },
    "max_angle": {
        "default": 120.0,
        "says": "degrees between the two views, at most; [P]",
        "limits": (1e-3, 180.0),
    },
    "size": {"default": 512, "says": "pixels of the square; [P]", "limits": (8, 16_384)},
    "num": {"default": 1000, "says": "best matches that count; [P]", "limits": (1, None)},
    "rank": {
        "default": "cosine",
        "says": "of matches: cosine ([P]) | ratio, 1 - d1 / d2 (Probe3D's code)",
        "choices": ("cosine", "ratio"),
    },
}
PROTOCOLS = {
    "paper": {"size": 512, "every_view": 4, "rank": "cosine"},
    "quick": {"size": 256, "every_view": 40},
}
TERMS = "NAVI: CC BY 4.0, https://github.com/google/navi"
SEED = 8
CELL = 4  # pixels between points in space, along each side
CENTIMETRES = (1, 2, 5)
ANGLES = (0, 30, 60, 90, 120)
DISPARITY = 655.35  # stored values of one metre away: 65,535 steps, 10 to a millimetre


@dataclasses.dataclass(frozen=True)
class View:
    """pose_34: of the object in the camera's frame (right, down, ahead), metres."""

    scene: str
    depth: Path
    focal: float  # pixels, in an image of image_size (height, width)
    image_size: tuple[int, int]
    pose_34: np.ndarray


@dataclasses.dataclass(frozen=True)
class Navi:
    """Fields: the images, a view each; pairs of them; and the section `navi`."""

    images: EncodedSource
    views: tuple[View, ...]
    pairs: tuple[tuple[int, int], ...]
    section: Any
    transform: Any
    patch_size: int

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.images,)

    def measure(self, network: Network) -> Measured:
        """Columns navi/recall, navi/recall_CMcm and navi/ANGLES: percent of matches.

        navi/recall is the mean of those at 1, 2 and 5 cm; columns of angles are of 2 cm.
        """
        rows, angles = [], []
        for one, other in self.pairs:
            sides = [self._points(network, index) for index in (one, other)]
            (source, source_xyz), (target, target_xyz) = sides
            matches = correspondence.match_points(
                source,
                target,
                source_xyz,
                target_xyz,
                num=self.section.num,
                rank=self.section.rank,
            )
            pose_34 = relative(self.views[one].pose_34, self.views[other].pose_34)
            away = correspondence.moved(matches.source_xyz, pose_34) - matches.target_xyz
            errors = np.linalg.norm(away, axis=1)
            rows.append([correspondence.recall(errors, cm / 100) for cm in CENTIMETRES])
            angles.append(correspondence.rotation_angle(pose_34[:, :3]))
        rows_N3 = np.array(rows)
        means = rows_N3.mean(axis=0)
        values = {f"navi/recall_{cm}cm": float(x) for cm, x in zip(CENTIMETRES, means, strict=True)}
        bins = correspondence.binned(rows_N3[:, CENTIMETRES.index(2)], angles, ANGLES)
        for low, high, value in zip(ANGLES[:-1], ANGLES[1:], bins, strict=True):
            if not np.isnan(value):
                values[f"navi/{low}_{high}_degrees"] = value
        values["navi/recall"] = float(rows_N3.mean())
        scenes = len({self.views[one].scene for one, _ in self.pairs})
        return Measured(
            values,
            num=len(self.pairs),
            told=f"{len(self.pairs)} pairs of views, {scenes} scenes",
            samples={"navi/recall": rows_N3},
            statistic=lambda rows_N3: float(rows_N3.mean()),
        )

    def _points(self, network: Network, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(patches [h, w, D], points in space [H, W, 3] of the same square)."""
        view, size = self.views[index], self.section.size
        stored, depth_HW = upright(self.images, index), metres(view.depth)
        if stored.shape[:2] != depth_HW.shape:
            raise ValueError(
                f"{view.depth} is {depth_HW.shape[0]} x {depth_HW.shape[1]} and its image "
                f"{stored.shape[0]} x {stored.shape[1]}."
            )
        top, left, side = object_square(depth_HW > 0)
        cut = np.ascontiguousarray(stored[top : top + side, left : left + side])
        seen = as_seen(self.transform, pixels.resized(cut, "exact", (size, size), "bilinear"))
        maps = patch_maps(network, seen[None], patch_size=self.patch_size, batch_size=1)
        return maps[0], in_space(depth_HW, view, (top, left, side), size // CELL)


def upright(images: EncodedSource, index: int) -> np.ndarray:
    """Pixels turned as EXIF says, which annotations and depth go by."""
    turned = Image.fromarray(images[index].pixels)
    with Image.open(io.BytesIO(images.encoded(index).data)) as stored:
        turned.getexif()[0x0112] = stored.getexif().get(0x0112, 1)
    return np.asarray(ImageOps.exif_transpose(turned))


def metres(path: Path) -> np.ndarray:
    """float32 [H, W] of a stored disparity, 0 where there is no object. ValueError names it."""
    try:
        with Image.open(path) as image:
            values_HW = np.asarray(image)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if values_HW.ndim != 2 or values_HW.dtype.itemsize < 2:
        raise ValueError(f"{path} is no 16-bit grey PNG, as depth of NAVI is.")
    if not values_HW.any():
        raise ValueError(f"{path} shows no object: all of it is 0.")
    values_HW = values_HW.astype(np.float32)
    return np.where(values_HW > 0, DISPARITY / np.maximum(values_HW, 1), 0)


def object_square(there_HW: np.ndarray) -> tuple[int, int, int]:
    """(top, left, side) of the square around an object, moved into the frame, at most as large."""
    rows, columns = (np.nonzero(there_HW.any(axis=axis))[0] for axis in (1, 0))
    ends = [(places[0], places[-1] + 1) for places in (rows, columns)]
    side = min(max(b - a for a, b in ends), *there_HW.shape)
    starts = [
        int(np.clip((a + b - side) // 2, 0, length - side))
        for (a, b), length in zip(ends, there_HW.shape, strict=True)
    ]
    return starts[0], starts[1], int(side)


def in_space(
    depth_HW: np.ndarray, view: View, square: tuple[int, int, int], num: int
) -> np.ndarray:
    """[num, num, 3] metres in the camera's frame, at the centres of the cells of a square."""
    height, width = depth_HW.shape
    top, left, side = square
    focal = view.focal * width / view.image_size[1]
    places = (np.arange(num) + 0.5) * side / num
    rows, columns = (np.floor(start + places).astype(int) for start in (top, left))
    depth = depth_HW[np.ix_(rows, columns)].astype(np.float64)
    x = (left + places - width / 2) / focal
    y = (top + places - height / 2) / focal
    return np.stack([x[None, :] * depth, y[:, None] * depth, depth], axis=-1)


def relative(one_34: np.ndarray, other_34: np.ndarray) -> np.ndarray:
    """Where the other camera sees what the first one sees."""
    rotation = other_34[:, :3] @ one_34[:, :3].T
    return np.concatenate([rotation, (other_34[:, 3] - rotation @ one_34[:, 3])[:, None]], axis=1)


def pose_of(quaternion: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """[R | t]; quaternion: w, x, y, z of any length, translation: millimetres."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.eye(3) + 2 * w * cross + 2 * cross @ cross
    return np.concatenate([rotation, translation[:, None] / 1000], axis=1)


def open_views(section: Any, channels: int) -> tuple[EncodedSource, list[View]]:
    """(images, a view of each), sorted by object, scene and name.

    Raises ConfigError for a folder without scenes and the first file that is not there, ValueError
    naming the annotations that hold something else.
    """
    root = Path(section.path)
    kind = "wild_set" if section.scenes == "wild" else "multiview*"
    lists = sorted(root.glob(f"*/{kind}/annotations.json"))
    if not lists:
        raise ConfigError(f"navi.path={root}: no {root}/OBJECT/{kind}/annotations.json is there.")
    names, views = [], []
    for path in lists:
        rows = fields.checked(fields.read(path, foreign=True), list, name="the whole", where=path)
        found = [_view(path, number, row) for number, row in enumerate(rows)]
        for name, view in sorted(found, key=lambda pair: pair[0]):
            names.append(str((path.parent / "images" / name).relative_to(root)))
            views.append(view)
    absent = [view.depth for view in views if not view.depth.is_file()]
    if absent:
        raise ConfigError(f"{len(absent)} maps of depth are not there, the first: {absent[0]}.")
    images = listed(root, names, channels)
    return dataclasses.replace(images, notes=(TERMS,)), views


def _view(path: Path, number: int, row: Any) -> tuple[str, View]:
    where = f"{path}, entry {number}"
    name = fields.field(row, "filename", str, where=where)
    camera = fields.field(row, "camera", dict, where=where)
    size = fields.field(row, "image_size", [int], where=where)
    quaternion, translation = (
        np.array(fields.field(camera, key, [float], where=where), np.float64) for key in ("q", "t")
    )
    focal = fields.field(camera, "focal_length", float, where=where)
    wrong = len(size) != 2 or len(quaternion) != 4 or len(translation) != 3
    if wrong or min(size) < 1 or focal <= 0 or not np.linalg.norm(quaternion):
        raise ValueError(
            f"{where}: expected image_size of 2, q of 4 and t of 3 numbers and a focal_length."
        )
    depth = path.parent / "depth" / f"{Path(name).stem}.png"
    scene = f"{path.parent.parent.name}/{path.parent.name}"
    pose_34 = pose_of(quaternion, translation)
    return name, View(scene, depth, float(focal), (size[0], size[1]), pose_34)


def drawn(views: list[View], *, every: int, max_angle: float) -> list[tuple[int, int]]:
    """Pairs: one of `every` views, and one of its scene turned by at most max_angle, not by 0."""
    rng, pairs = np.random.default_rng(SEED), []
    scenes: dict[str, list[int]] = {}
    for index, view in enumerate(views):
        scenes.setdefault(view.scene, []).append(index)
    for index, view in enumerate(views):
        others = scenes[view.scene]
        turns = [relative(view.pose_34, views[i].pose_34)[:, :3] for i in others]
        angles = np.array([correspondence.rotation_angle(turn) for turn in turns])
        near = [i for i, angle in zip(others, angles, strict=True) if 1e-3 < angle <= max_angle]
        partner = near[rng.integers(len(near))] if near else None
        if index % every == 0 and partner is not None:
            pairs.append((index, partner))
    return pairs


def build(section, setting: Setting) -> Navi | None:
    section = values_of(section, KEYS)
    if not section.path:
        return None
    for cell, what in ((setting.patch_size, "of the patch"), (CELL, "between points in space")):
        if section.size % cell:
            raise ConfigError(f"navi.size={section.size} is no multiple of {cell} pixels {what}.")
    images, views = open_views(section, setting.config.image.channels)
    pairs = drawn(views, every=section.every_view, max_angle=section.max_angle)
    if not pairs:
        raise ConfigError(
            f"navi.path={section.path}: no two views of a scene are turned by at most "
            f"navi.max_angle={section.max_angle:g} degrees."
        )
    return Navi(images, tuple(views), tuple(pairs), section, setting.transform, setting.patch_size)

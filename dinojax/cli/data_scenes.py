"""`dinojax data scenes`: what scenes hold, and their statistics as the config reads them."""

import argparse

from dinojax.cli.parser import bands, numbers
from dinojax.data.header import ReadOptions
from dinojax.data.scene import Scene

SCENES = """\
Read scenes once, window by window: size, bands, CRS, share of nodata; least, greatest, mean and
deviation of each band; and image.mean and image.std as a network sees the values. Nodata is left
out of all of them. PATH is a scene, or a folder of scenes of one kind (docs/satellite.md).

examples:
  dinojax data scenes /data/scenes
  dinojax data scenes /data/scenes --value-range 0,3000 --bands 4,3,2
"""


def add(commands, command) -> None:
    """The command among those of `data`."""
    parser = command(commands, "scenes", "statistics of the bands of scenes", SCENES, _scenes)
    parser.add_argument("path", metavar="PATH", help="a scene, or a folder of scenes")
    parser.add_argument(
        "--value-range",
        type=numbers,
        default=[],
        metavar="LOW,HIGH",
        help="values that become 0 and 255, for all bands or each; default: those of the type",
    )
    parser.add_argument("--bands", type=bands, default=[], metavar="N,N", help="default: all")


def _scenes(args: argparse.Namespace) -> None:
    from dinojax.data.scene_statistics import statistics  # commands import when they run
    from dinojax.data.scene_tiles import open_scenes

    ends = tuple(args.value_range)
    options = ReadOptions(value_range=ends, bands=tuple(args.bands))
    scenes, names, notes = open_scenes(args.path, key="PATH", options=options, is_ranged=False)
    scenes[0].check_pairs(ends, key="--value-range")
    found = statistics(scenes, ends)
    print("\n".join([*notes, *(_header(*pair) for pair in zip(names, scenes, strict=True))]))
    print("\n".join(_table(found, scenes[0])))


def _header(name: str, scene: Scene) -> str:
    kind = f"{scene.width} x {scene.height}, {len(scene.bands)} bands of {scene.dtype}"
    return f"{name}: {kind}, {'georeferenced' if scene.crs else 'without a CRS'}"


def _table(found: dict, scene: Scene) -> list[str]:
    lines = [f"{'nodata':17s} {1 - found['known']:.2%}"]
    parts = (found[name] for name in ("low", "high", "mean", "std"))
    for band, (low, high, mean, std) in zip(scene.bands, zip(*parts, strict=True), strict=True):
        told = f"{low:g} to {high:g}, mean {mean:.6g}, deviation {std:.6g}"
        lines.append(f"{f'band {band}':17s} {told}")
    if found["image_mean"] is None:
        told = "give --value-range LOW,HIGH to have image.mean and image.std"
        return [*lines, f"{scene.dtype} values have no known range: {told}"]
    for name in ("mean", "std"):
        values = ", ".join(f"{value:.4f}" for value in found[f"image_{name}"])
        lines.append(f"{name:17s} --set 'image.{name}=[{values}]'")
    return lines

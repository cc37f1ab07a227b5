"""`dinojax task`: heads on a frozen backbone, trained and run."""

import argparse
import importlib
from typing import Any

from dinojax.cli.parser import Parser, bands, numbers
from dinojax.distributed import cluster
from dinojax.distributed.interrupt import leaving

SUMMARY = "heads on a frozen backbone: depth, canopy height, segmentation, detection"
TASKS = ("depth", "canopy", "segment", "detect")
TRAIN = """\
Train a head on a frozen backbone. DATA holds train/ and val/ (or is one folder), each with images/
and maps/ of the same names: metres (depth, canopy) or labels (segment); or images/ and, in COCO's
form, annotations.json (detect), also in COCO's own folders. RUN receives checkpoints,
metrics.jsonl, pictures of predictions beside the truth, and head.safetensors at the end. The same
command continues a run that was stopped or killed (docs/heads.md).

examples:
  dinojax task train depth --backbone runs/vitl16 --data nyu --run runs/depth
  dinojax task train segment --backbone vits16.pth --data ade --run runs/ade \\
      --set head=linear --set zero_is_unlabelled=true
  dinojax task train detect --backbone runs/vitl16 --data coco --run runs/boxes \\
      --set leave_out=true
"""
RUN = """\
The map of every image by a head that was trained: OUT receives NAME.npy in metres, NAME.png of
classes or NAME.json of boxes (COCO's results), and NAME-picture.png. A GeoTIFF, and any raster
too large for an image, is a scene: it is mapped window by window into the GeoTIFF NAME.tif, which
lies where the scene does (docs/satellite.md).

examples:
  dinojax task run depth --weights runs/depth --image street.jpg --out maps
  dinojax task run segment --weights runs/ade --image a.jpg b.jpg --out maps
  dinojax task run canopy --weights runs/canopy --image scene.tif --out maps --value-range 0,3000
  dinojax task run detect --weights runs/boxes --image street.jpg --out boxes
"""


def add_verb(commands: Any, shared: Parser) -> None:
    """`task train` and `task run`."""
    commands = shared.group(commands, "task", SUMMARY, SUMMARY)
    _train(shared.command(commands, "train", "train a head", TRAIN, _run_train))
    _run(shared.command(commands, "run", "maps of images by a head", RUN, _run_run))


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="NAME", choices=TASKS, help=", ".join(TASKS))
    parser.add_argument("--backbone", metavar="PATH", required=True, help="run, file or folder")
    parser.add_argument(
        "--data", metavar="PATH", required=True, help="folder of images with maps or boxes"
    )
    parser.add_argument("--run", metavar="DIR", required=True, help="made if absent")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the head, such as lr=0.001; may be given many times (docs/heads.md)",
    )


def _run_train(args: argparse.Namespace) -> None:
    with leaving():
        train = importlib.import_module("dinojax.tasks.train").train
    found = train(
        args.task, backbone=args.backbone, data=args.data, run_dir=args.run, overrides=args.set
    )
    for name, value in found.items():
        print(f"  {name:10s} {value:.4g}")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="NAME", choices=TASKS, help=", ".join(TASKS))
    parser.add_argument("--weights", metavar="PATH", required=True, help="run of task train")
    parser.add_argument("--image", metavar="FILE", nargs="+", required=True)
    parser.add_argument("--out", metavar="DIR", required=True, help="made if absent")
    parser.add_argument("--backbone", metavar="PATH", help="default: where it was in training")
    parser.add_argument(
        "--value-range",
        type=numbers,
        default=(),
        metavar="LOW,HIGH",
        help="values that become 0 and 255, for all bands or each; default: as in training",
    )
    parser.add_argument(
        "--bands",
        type=bands,
        default=(),
        metavar="N,N",
        help="of a scene that the backbone sees, from 1 on; default: all",
    )


def _run_run(args: argparse.Namespace) -> None:
    cluster.refuse_many("task run")
    run = importlib.import_module("dinojax.tasks.run")
    run.run_task(
        args.task,
        weights=args.weights,
        images=args.image,
        out=args.out,
        backbone=args.backbone,
        reading=run.Reading(tuple(args.value_range), tuple(args.bands)),
    )

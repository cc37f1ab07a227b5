"""Trains the PyTorch reference and dinojax on the same images by the same recipe, and compares.

    python -m tests.same_learning OUT --reference CHECKOUT --seeds 16   # goes on with what OUT has

CHECKOUT is one of https://github.com/facebookresearch/dinov3, whose packages (torch, torchvision,
omegaconf) must be there. Both sides read tests/recorded/same_learning.yaml, a recipe in its
format: it by its own code, dinojax through `dinojax config migrate`. A seed decides weights,
order, crops, masks and all else of a run, and the two sides draw differently, so that only means
and spreads over seeds can be compared. A row of OUT/runs.jsonl is one finished run. One thread;
outside CI. docs/learning.md tells what came out.
"""

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from PIL import Image

from dinojax import config as configs
from dinojax.config import Config
from dinojax.data.tiles import tiles
from dinojax.eval.contract import Setting
from dinojax.eval.features import EvalTransform
from dinojax.eval.knn_evaluator import Knn, build
from dinojax.migrate.files import read_yaml, recipe_text
from dinojax.migrate.translate import migrate
from dinojax.runs.scalars import read_metrics
from dinojax.train import initialize, loop
from tests.support.seed_statistics import SIDES, summary, table

RECIPE = Path(__file__).parent / "recorded" / "same_learning.yaml"
RECORDED = Path(__file__).parent / "recorded" / "same_learning.json"
EPOCHS = "train.OFFICIAL_EPOCH_LENGTH", 10  # the recipe's epochs, whatever their length
TERMS = ("total", "dino_local", "dino_global", "ibot", "koleo")
# Plain prototypes (0.02) leave the teacher almost uniform for hundreds of steps: unit length.
SHAPE = {"width": 96, "depth": 4, "num_heads": 3, "prototype_factor": 6.25}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for images and rows")
    parser.add_argument("--reference", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--seeds", type=int, default=16, help="of each side, from 0; 0: no run")
    parser.add_argument("--steps", type=int, default=200, help="a multiple of ten")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    args = parser.parse_args(argv)
    if args.steps < 10 or args.steps % EPOCHS[1]:
        parser.error(f"--steps {args.steps} is no multiple of {EPOCHS[1]}, as the recipe's epochs")
    write_tiles(args.out / "tiles")
    done = {(row["side"], row["seed"]) for row in finished(args.out, args.steps)}
    for seed in range(args.seeds):
        for side in args.sides:
            if (side, seed) not in done:
                run(side, seed, args.steps, out=args.out, checkout=args.reference)
    found = [summary(row) for row in finished(args.out, args.steps)]
    if args.record:
        record(found)
    print("\n".join(table(found)))


def record(summaries: list[dict]) -> None:
    """The outcome of runs of one length, beside those of others."""
    kept = json.loads(RECORDED.read_text()) if RECORDED.exists() else []
    rows = [row for row in kept if row["steps"] != summaries[0]["steps"]] + summaries
    RECORDED.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def write_tiles(folder: Path) -> None:
    """The embedded tiles as grey FOLDER/SPLIT/CLASS/NUMBER.png, unless they are there."""
    if folder.exists():
        return
    draft = folder.with_name("tiles.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for split in ("train", "bank", "test"):
        source = tiles(channels=1, split=split)
        for number, label in enumerate(source.labels):
            place = draft / split / source.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            pixels = source.pixels_NHWC[number, :, :, 0]
            Image.fromarray(pixels).save(place / f"{number:04d}.png")
    draft.rename(folder)


def finished(out: Path, steps: int) -> list[dict]:
    """The rows of runs of this length."""
    path = out / "runs.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [row for row in rows if row["steps"] == steps]


def run(side: str, seed: int, steps: int, *, out: Path, checkout: Path) -> None:
    """One run, and its row."""
    began, directory = time.process_time(), out / f"{side}{seed}"
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was stopped
    directory.mkdir()
    config = own_config(seed, steps, out)
    if side == "dinojax":
        curves, knn = run_own(config, directory)
    else:
        curves, knn = run_reference(config, seed, steps, checkout=checkout, directory=directory)
    shutil.rmtree(directory)
    row = {"side": side, "seed": seed, "steps": steps, "knn": knn}
    row |= {"processor_seconds": round(time.process_time() - began), "curves": curves}
    with (out / "runs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{side} {seed}: k-NN of cls {knn['cls']:.1f} %, {row['processor_seconds']} s",
        flush=True,
    )


def own_config(seed: int, steps: int, out: Path) -> Config:
    """The recipe as `dinojax config migrate` makes it, with what the reference is told apart."""
    given = read_yaml(RECIPE) | {EPOCHS[0]: steps // EPOCHS[1]}
    recipe = out / "recipe.py"
    recipe.write_text(recipe_text(migrate(given, gpus=1), source=RECIPE.name, name="it", gpus=1))
    folder = out / "tiles"
    settings = {
        "seed": seed,
        **{f"model.{name}": SHAPE[name] for name in ("width", "depth", "num_heads")},
        "rope.dtype": "bfloat16",  # as the reference computes whatever its file says
        "image.normalize": "per_crop",
        "data.path": folder / "train",
        "data.box_size": 48,
        "knn.bank": folder / "bank",
        "knn.query": folder / "test",
        "knn.every": steps,
        "knn.crop_size": 32,
        "knn.resize_size": 32,
        "mesh.devices": 1,
        "log.every": 1,
        "log.pictures": False,
    }
    return configs.load(str(recipe), [f"{key}={value}" for key, value in settings.items()])


def run_own(config: Config, directory: Path) -> tuple[dict, dict]:
    """(term -> value of every step, k-NN in percent) of `dinojax train`."""
    first_state = initialize.first_state

    def scaled(*args):
        state = first_state(*args)
        student = jax.tree_util.tree_map_with_path(_scaled, state.student)
        return dataclasses.replace(state, student=student, ema=jax.tree.map(jnp.copy, student))

    with mock.patch.object(initialize, "first_state", scaled):
        loop.train(config, directory / "run")
    rows = read_metrics(directory / "run" / "metrics.jsonl")
    curves = {name: [row[name] for row in rows if name in row] for name in TERMS}
    knn = [row for row in rows if "knn/cls" in row][-1]
    return curves, {name: knn[f"knn/{name}"] for name in ("cls", "patches")}


def _scaled(path, leaf):
    is_prototypes = any(key.key == "prototypes" for key in path)
    return leaf * SHAPE["prototype_factor"] if is_prototypes else leaf


def run_reference(
    config: Config, seed: int, steps: int, *, checkout: Path, directory: Path
) -> tuple[dict, dict]:
    """The same of the reference's own loop; config: what the k-NN of both sides goes by."""
    import torch
    from omegaconf import OmegaConf

    from tests.support import reference_loop

    torch.set_num_threads(1)
    recipe = OmegaConf.load(RECIPE)
    OmegaConf.update(recipe, EPOCHS[0], steps // EPOCHS[1])
    rows, backbone = reference_loop.train(
        reference_loop.open_reference(checkout),
        recipe,
        sorted(Path(config.data.path).glob("*/*.png")),
        seed=seed,
        shape=reference_loop.Shape(**SHAPE),
        directory=directory,
    )
    found = _knn(config).accuracy(reference_loop.embed(backbone), {})
    curves = {name: [row[name] for row in rows] for name in TERMS}
    return curves, {name: found[name] for name in ("cls", "patches")}


def _knn(config: Config) -> Knn:
    transform = EvalTransform.from_sections(image=config.image, knn=config.knn)
    knn = build(config.knn, Setting(config, transform, config.model.patch_size))
    assert knn is not None
    return knn


if __name__ == "__main__":
    main()

"""Small data in earnest: from scratch, guided and compared, on 48 classes of public drawings.

    apt-get install openclipart-png
    python -m tests.programs.own_data prepare OUT [--side 96] [--plant]
    python -m tests.programs.own_data table OUT --variants dino ibot --seeds 0 1 2 --epochs 20
    python -m tests.programs.own_data guided OUT --seeds 0 1 2 --epochs 20

`prepare` cleans the collection (no copies, no `stars` and `unsorted`, sides of 64 to 1500 pixels,
folders of 30 images at least, transparency on white, reduced to --side) and keeps every fifth image
of a class for queries; --plant tints each image by one of four devices, which a table lists.
`table` trains each variant of configs/own_small.py at the same number of images and prints k-NN of
the queries, beside random weights and pixels; `guided` trains with and without a guide that removes
the device and prints k-NN and what a fresh linear probe still reads of it. A run that is there is
gone on with, and --set goes to all.
"""

import argparse
import csv
import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLLECTION = Path("/usr/share/openclipart/png")
DROPPED = {"stars", "unsorted"}
SIDES, SMALLEST, EVERY = (64, 1500), 30, 5
TINTS = ((1.0, 0.75, 0.75), (0.75, 1.0, 0.75), (0.75, 0.75, 1.0), (0.9, 0.9, 0.6))
# Variants of the same budget; the first is what the formulas choose at this size.
BLOCKS = ("losses.ibot=0.5", "masks.rate=0.5")
VARIANTS = {
    "dino": (),
    "ibot": BLOCKS,
    "no_koleo": ("losses.koleo=0.0",),
    "sigreg": ("losses.koleo=0.0", "losses.sigreg=0.05"),
    "sinkhorn": ("losses.centering=sinkhorn",),
    "softmax": ("losses.centering=softmax",),
    "k65536": ("dino_head.prototypes=65536", "ibot_head.prototypes=65536"),
}
# A network that two cores train: of tiny's size, on crops of 48 pixels.
SMALL = (
    *("model.width=96", "model.depth=4", "model.num_heads=3", "model.patch_size=8"),
    *("crops.global_size=48", "crops.local_size=24", "crops.num_local=4", "knn.mosaics=0"),
    *("dino_head.hidden=256", "dino_head.bottleneck=64", "log.pictures=False", "batch_size=64"),
    *("ibot_head.hidden=256", "ibot_head.bottleneck=64", "knn.features=both"),
)
GUIDED = {
    "plain": (),
    "guided": ("guides.rows=(('device','classification','remove',1.0),)",),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "table", "guided"))
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for images and runs")
    parser.add_argument("--side", type=int, default=96, help="pixels of the short side")
    parser.add_argument("--plant", action="store_true", help="tint by a device")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    {"prepare": prepare, "table": table, "guided": guided}[args.what](args)


# -- images -------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    classes = cleaned(COLLECTION)
    rows = []
    for name, paths in classes.items():
        for number, path in enumerate(paths):
            part = "query" if number % EVERY == EVERY - 1 else "bank"
            device = int(hashlib.sha256(f"{name}/{number}".encode()).hexdigest(), 16) % len(TINTS)
            image = reduced(path, args.side)
            if args.plant:
                image = tinted(image, device)
            place = args.out / part / name / f"{number:04d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.save(place)
            rows.append((part, f"{name}/{number:04d}.png", device))
    for part in ("bank", "query"):
        with open(args.out / f"{part}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "device"))
            writer.writerows(row[1:] for row in rows if row[0] == part)
    print(f"{len(rows):,} images of {len(classes)} classes in {args.out}")


def cleaned(collection: Path) -> dict[str, list[Path]]:
    """Class (the folder) -> its images, without copies and what is too small, large or alone."""
    Image.MAX_IMAGE_PIXELS = None  # sizes alone are read of the largest
    seen: set[bytes] = set()
    found: dict[str, list[Path]] = {}
    for path in sorted(collection.rglob("*.png")):
        parts = path.relative_to(collection).parts
        if path.is_symlink() or DROPPED & set(parts):
            continue
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        with Image.open(path) as image:
            low, high = sorted(image.size)
        if low >= SIDES[0] and high <= SIDES[1]:
            found.setdefault("-".join(parts[:-1]), []).append(path)
    return {name: paths for name, paths in sorted(found.items()) if len(paths) >= SMALLEST}


def reduced(path: Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        drawn = image.convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    white.alpha_composite(drawn)
    scale = side / min(white.size)
    if scale < 1:
        size = [max(1, round(edge * scale)) for edge in white.size]
        white = white.resize(size, Image.Resampling.LANCZOS)
    return white.convert("RGB")


def tinted(image: Image.Image, device: int) -> Image.Image:
    return Image.fromarray((np.asarray(image) * np.array(TINTS[device])).astype(np.uint8))


# -- runs ---------------------------------------------------------------------------------------


def table(args: argparse.Namespace) -> None:
    found: dict[str, list[float]] = {}
    for variant in args.variants:
        for seed in args.seeds:
            rows = trained(args, variant, seed, VARIANTS[variant])
            found.setdefault("random weights", []).append(rows[0])
            found.setdefault(variant, []).append(rows[-1])
    found["pixels"] = [pixels(args.out)]
    print("| variant | k-NN % by seed | mean |\n|---|---|---|")
    for name, values in found.items():
        told = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {name} | {told} | {statistics.mean(values):.1f} |")


def guided(args: argparse.Namespace) -> None:
    print("| run | seed | k-NN % | probe of the device % | chance % |\n|---|---|---|---|---|")
    for name, settings in GUIDED.items():
        for seed in args.seeds:
            extra = (*settings, f"data.metadata={args.out / 'bank.csv'}") if settings else ()
            last = trained(args, name, seed, (*extra, "data.source=folder"))[-1]
            accuracy, chance = probed(args.out, f"{name}-{seed}")
            print(f"| {name} | {seed} | {last:.1f} | {accuracy:.1f} | {chance:.1f} |", flush=True)


def trained(args: argparse.Namespace, name: str, seed: int, settings) -> list[float]:
    """k-NN in percent at each evaluation of a run, the first that of random weights."""
    run = args.out / "runs" / f"{name}-{seed}"
    keys = [*SMALL, *settings, *args.set, f"seed={seed}"]
    keys += [f"data.path={args.out / 'bank'}", f"knn.query={args.out / 'query'}"]
    command = [sys.executable, "-m", "dinojax", "train", "--config", "own_small"]
    command += ["--run", str(run), "--epochs", str(args.epochs)]
    command += [part for key in dict.fromkeys(keys) for part in ("--set", key)]
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(run.parent / f"{run.name}.txt", "a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["knn/both"] for row in rows if "knn/both" in row]


def probed(out: Path, name: str) -> tuple[float, float]:
    """(accuracy of a fresh linear probe of the device, chance) in percent, on held-out images."""
    from dinojax.eval.removal import linear_probe

    parts = {}
    for part in ("bank", "query"):
        place = out / "runs" / f"{name}-{part}"
        command = [sys.executable, "-m", "dinojax", "embed", "--weights", str(out / "runs" / name)]
        command += ["--data", str(out / part), "--out", str(place)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(out / f"{part}.csv") as file:
            devices = {row["path"]: int(row["device"]) for row in csv.DictReader(file)}
        found = [np.load(path) for path in sorted(place.glob("*.npz"))]
        names = [str(name) for arrays in found for name in arrays["name"]]
        features = np.concatenate([arrays["cls"] for arrays in found])
        parts[part] = features, np.array([devices[name] for name in names])
    probe = linear_probe(*parts["bank"], *parts["query"])
    return 100 * probe.accuracy, 100 * probe.chance


def pixels(out: Path, side: int = 24, neighbors: int = 20) -> float:
    """k-NN of the queries by their pixels, reduced to a square: what needs no network."""

    def read(part: str) -> tuple[np.ndarray, list[str]]:
        paths = sorted((out / part).glob("*/*.png"))
        rows = [np.asarray(Image.open(p).resize((side, side))).ravel() for p in paths]
        x = np.array(rows, np.float32)
        x -= x.mean(axis=1, keepdims=True)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6), [
            path.parent.name for path in paths
        ]

    bank, labels = read("bank")
    queries, wanted = read("query")
    nearest = np.argsort(-(queries @ bank.T), axis=1)[:, :neighbors]
    answers = [statistics.mode(labels[i] for i in row) for row in nearest]
    return 100 * float(np.mean([a == b for a, b in zip(answers, wanted, strict=True)]))


if __name__ == "__main__":
    main()

"""Curation of real pictures, of which the right answer is known: planted copies, an uneven mix.

    python -m tests.programs.curate_pictures make --pictures /usr/share/openclipart/png --out pool
    dinojax curate run RECIPE --out curated
    python -m tests.programs.curate_pictures judge --pool pool --curated curated

`make` takes pictures that differ from all others (perceptual hashes more than 10 bits apart), few
of most classes, and plants altered copies: other strengths than those that `curate` calibrates on.
`judge` prints one JSON line: precision and recall of the dropped images, evenness of the classes.
"""

import argparse
import csv
import io
import json
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageEnhance

from dinojax.curate.allocate import sample
from dinojax.curate.hierarchy import Level, Settings, hierarchy
from dinojax.curate.pool import SomeRows, open_pool
from dinojax.curate.work import tree_of

SIDE, APART = 128, 10
SEED = 11


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).copy()


def cropped(image, share, rng):
    width, height = (round(side * share) for side in image.size)
    x, y = (rng.integers(image.width - width + 1), rng.integers(image.height - height + 1))
    return image.crop((x, y, x + width, y + height))


COPIES = {
    "recompressed": lambda image, rng: jpeg(image, int(rng.integers(25, 60))),
    "smaller": lambda image, rng: image.resize([max(16, round(s * 0.6)) for s in image.size]),
    "crop": lambda image, rng: cropped(image, 0.88, rng),
    "brighter": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.15),
    "recompressed crop": lambda image, rng: jpeg(cropped(image, 0.92, rng), 50),
}


def pictures(folder, most):
    """(class, image) of pictures that differ from all before, on white, small."""
    hashes = np.zeros(0, np.uint64)
    rng = np.random.default_rng(SEED)
    for group in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = sorted(group.rglob("*.png"))
        for number in rng.permutation(len(files))[:most]:
            try:
                with Image.open(files[number]) as file:
                    if file.width * file.height > 4_000_000:
                        continue
                    image = file.convert("RGBA")
            except (OSError, Image.DecompressionBombError):
                continue
            image.thumbnail((SIDE, SIDE))
            flat = Image.new("RGB", image.size, "white")
            flat.paste(image, mask=image.getchannel("A"))
            mark = np.uint64(int(str(imagehash.phash(flat)), 16))
            if min(flat.size) < 32 or (np.bitwise_count(hashes ^ mark) <= APART).any():
                continue
            hashes = np.append(hashes, mark)
            yield group.name, flat


def make(args):
    rng, by_class = np.random.default_rng(SEED), {}
    for name, image in pictures(Path(args.pictures), args.most):
        by_class.setdefault(name, []).append(image)
    rows, out = [], Path(args.out)
    for rank, name in enumerate(sorted(by_class, key=lambda n: -len(by_class[n]))):
        # The classes become the more uneven: of each a smaller share than of the one before.
        images = by_class[name][: max(20, round(len(by_class[name]) * 0.8**rank))]
        (out / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            path = f"{name}/{number:04d}.png"
            image.save(out / path)
            rows.append((path, path, "original"))
            if rng.random() < args.copied:
                for kind in rng.choice(list(COPIES), rng.integers(1, 4), replace=False):
                    copy = f"{name}/{number:04d}-{kind.replace(' ', '-')}.png"
                    COPIES[kind](image, rng).save(out / copy)
                    rows.append((copy, path, kind))
    with open(out / "truth.csv", "w") as file:
        csv.writer(file).writerows([("path", "original", "kind"), *rows])
    print(len(rows), "images,", sum(row[2] != "original" for row in rows), "copies")


def entropy(labels, num):
    """Of the shares of the classes, as a part of the largest possible."""
    shares = np.bincount(labels, minlength=num) / len(labels)
    kept = shares[shares > 0]
    return float(-(kept * np.log(kept)).sum() / np.log(num))


def judge(args):
    curated = Path(args.curated)
    with open(Path(args.pool) / "truth.csv") as file:
        truth = {row["path"]: row for row in csv.DictReader(file)}
    pool = open_pool(curated / "embed" / "pool")
    ids = pool.ids(np.arange(len(pool)))
    survivor = np.load(curated / "dedup" / "survivor.npy")
    group = np.array([truth[name]["original"] for name in ids])
    dropped = np.flatnonzero(survivor != np.arange(len(ids)))
    right = group[dropped] == group[survivor[dropped]]
    num_copies = len(ids) - len(set(group))
    classes = sorted({name.split("/")[0] for name in ids})
    label = np.array([classes.index(name.split("/")[0]) for name in ids])
    chosen, kept = (np.load(curated / path) for path in ("sample/chosen.npy", "dedup/kept.npy"))
    told = json.loads((curated / "kmeans" / "step.json").read_text())["made"]["settings"]
    flat = hierarchy(SomeRows(pool, kept), [Level(told["clusters"][-1])], Settings())
    by_flat = kept[sample(tree_of(flat), len(chosen), rng=np.random.default_rng(0))]
    by_chance = np.random.default_rng(0).choice(kept, len(chosen), replace=False)
    found = {
        "images": len(ids),
        "copies": num_copies,
        "dropped": len(dropped),
        "precision": float(right.mean()) if len(dropped) else 1.0,
        "recall": float(right.sum() / num_copies),
        "evenness": {
            "pool": entropy(label, len(classes)),
            "random": entropy(label[by_chance], len(classes)),
            "flat k-means": entropy(label[by_flat], len(classes)),
            "hierarchy": entropy(label[chosen], len(classes)),
        },
    }
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("make")
    one.add_argument("--pictures", required=True)
    one.add_argument("--out", required=True)
    one.add_argument("--most", type=int, default=600, help="pictures of a class that are looked at")
    one.add_argument("--copied", type=float, default=0.25, help="share of pictures with copies")
    one.set_defaults(run=make)
    two = commands.add_parser("judge")
    two.add_argument("--pool", required=True)
    two.add_argument("--curated", required=True)
    two.set_defaults(run=judge)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

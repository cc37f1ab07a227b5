"""What colours alone say of captioned tiles, beside what a run of `dinotxt_tiny` says.

Run: python -m tests.programs.text_baseline [RUN] [--per-crop]. A bag of colours: the histogram of
a tile's colours (8 bins a channel). A class, or a caption, is the mean histogram of the training
tiles that have it, so the baseline has seen the same pairs. --per-crop: histograms of tiles as
image.normalize=per_crop leaves them, which is what the network sees. Ends with one line of JSON;
exit code 1 if the run is not at least ten points above it, zero-shot and in retrieval both ways.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from dinojax.data.tiles import TileSource, tiles
from dinojax.eval import pairs, text_model, zeroshot

BINS = 8
POINTS = 10.0  # that a run must be above the baseline
FEW = 5  # images of a caption, of all that are judged


def histogram(pixels_HWC: np.ndarray, *, per_crop: bool = False) -> np.ndarray:
    """Shares of the colours of a tile, their roots, so that cosines are Hellinger affinities."""
    if per_crop:  # two standard deviations to either side fill the range
        unit_HWC = (pixels_HWC - pixels_HWC.mean()) / max(pixels_HWC.std(), 1e-6)
        pixels_HWC = np.clip(128 + 64 * unit_HWC, 0, 255)
    bins = (pixels_HWC.astype(int) * BINS) // 256
    numbers = (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]
    counts = np.bincount(numbers.ravel(), minlength=BINS**3)
    return np.sqrt(counts / counts.sum())


def opened(split: str) -> TileSource:
    return dataclasses.replace(tiles(channels=3, split=split), captioned=True)


def baseline(*, per_crop: bool = False) -> dict[str, float]:
    """Percent right on tiles of parts of the photographs that no training tile shows."""
    train, val = opened("train"), opened("val")
    seen, query = (
        np.stack([histogram(s.read(i).pixels, per_crop=per_crop) for i in range(len(s))])
        for s in (train, val)
    )
    classes = np.stack([seen[train.labels == c].mean(axis=0) for c in range(len(train.subjects))])
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    found = {"zeroshot/top1": 100 * np.mean(zeroshot.ranks(query, classes, val.labels) < 1)}
    texts, edges = pairs.numbered([val.read(i).captions for i in range(len(val))], merge=True)
    known: dict[str, list[int]] = {}
    for index in range(len(train)):
        for text in train.read(index).captions:
            known.setdefault(text, []).append(index)
    everything = list(range(len(train)))
    vectors = np.stack([seen[known.get(text, everything)].mean(axis=0) for text in texts])
    found |= recalls(query, vectors, edges)
    chance = {
        "zeroshot/top1": 100 / len(train.subjects),
        "pairs/text@1": 100 * len(edges) / len(val) / len(texts),
        "pairs/image@1": 100 * len(edges) / len(texts) / len(val),
    }
    return {
        **{k: float(v) for k, v in found.items()},
        **{f"chance/{k}": v for k, v in chance.items()},
    }


def recalls(images_NE: np.ndarray, texts_ME: np.ndarray, edges: np.ndarray) -> dict[str, float]:
    """Both ways, and of captions apart that few images have."""
    to_text, to_image = pairs.ranks(images_NE, texts_ME, edges)
    is_rare = np.bincount(edges[:, 1]) <= FEW
    found = {}
    for k in pairs.RECALLS:
        found[f"pairs/text@{k}"] = 100 * np.mean(to_text < k)
        found[f"pairs/image@{k}"] = 100 * np.mean(to_image < k)
    for name, chosen in (("few", is_rare), ("more", ~is_rare)):
        found[f"pairs/image@1 of {name}"] = 100 * np.mean(to_image[chosen] < 1)
    return found


def by_captions(run: Path) -> dict[str, float]:
    """Recall of captions that few images have, and of others, of the last checkpoint of a run."""
    model, val = text_model.load(run), opened("val")
    read = [val.read(i) for i in range(len(val))]
    pixels = np.stack([model.preprocessing(example.pixels) for example in read])
    images = [model.images(pixels[i : i + 96]).pooled for i in range(0, len(read), 96)]
    texts, edges = pairs.numbered([example.captions for example in read], merge=True)
    found = recalls(np.concatenate(images), model.texts(texts), edges)
    return {name: value for name, value in found.items() if " of " in name}


def of_run(run: Path) -> dict[str, float]:
    """The last measurements of a run."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found |= {name: v for name, v in row.items() if name.startswith(("zeroshot/", "pairs/"))}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--per-crop", action="store_true", help="colours as networks see them")
    args = parser.parse_args(argv)
    run, colours = args.run, baseline(per_crop=args.per_crop)
    measured = {} if run is None else of_run(run) | by_captions(run)
    for name, value in colours.items():
        here = f"  run {measured[name]:5.1f} %" if name in measured else ""
        print(
            f"{name:24s} colours {value:5.1f} %{here}"
            if "chance" not in name
            else f"{name:24s} {value:5.1f} %"
        )
    compared = [n for n in ("zeroshot/top1", "pairs/text@1", "pairs/image@1") if n in measured]
    above = {name: measured[name] - colours[name] for name in compared}
    print(json.dumps({"colours": colours, "run": measured, "above": above}))
    return int(any(points < POINTS for points in above.values()))


if __name__ == "__main__":
    sys.exit(main())

"""COCO's average precision of boxes: `tasks/coco_ap.py` against pycocotools, in one run.

    python -m benchmarks.detection_ap                # 1,000 images, 80 classes, 100 boxes an image
    python -m benchmarks.detection_ap --images 50 --classes 8

One JSON line. value: processor seconds of ours, from what a detector says of every query (logits
and boxes, post-processed by `detr.detected`) to the twelve numbers; baseline: the same
post-processing, then pycocotools from a list of results to its twelve numbers. equal: all twelve
within 1e-9. Each is taken twice and the faster counts. Needs pycocotools.
"""

import argparse
import contextlib
import io
import time

import numpy as np

_SIDE = 640  # pixels of an image
_KEPT = 100  # boxes of an image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--queries", type=int, default=300)
    args = parser.parse_args()
    from benchmarks.rows import row

    truth = objects(args.images, args.classes, seed=0)
    found = said(truth, args.queries, args.classes, seed=1)
    post_processed(found)  # compiled
    times, summaries = {}, {}
    for name, measure in (("ours", ours), ("peer", theirs)):
        for _ in range(2):
            began = time.process_time()
            summaries[name] = measure(truth, post_processed(found), args.classes)
            taken = time.process_time() - began
            times[name] = min(times.get(name, taken), taken)
    difference = float(np.max(np.abs(summaries["ours"] - summaries["peer"])))
    row(
        name="detection_ap",
        config=vars(args),
        value=round(times["ours"], 2),
        unit="processor s",
        baseline=round(times["peer"], 2),
        ratio=round(times["peer"] / times["ours"], 2),
        equal=difference < 1e-9,
        largest_difference=difference,
        ap=float(summaries["ours"][0]),
    )


def objects(num_images: int, num_classes: int, seed: int):
    """Columns (image, class, corner [N, 2], sides [N, 2], crowd) of some seven objects an image."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(num_images), rng.integers(1, 14, num_images))
    sides = np.exp(rng.uniform(np.log(8), np.log(320), (len(image), 2)))
    corner = rng.uniform(0, 1, sides.shape) * (_SIDE - sides)
    columns = image, rng.integers(0, num_classes, len(image)), corner, sides
    return (*columns, rng.uniform(size=len(image)) < 0.02)


def said(truth, num_queries: int, num_classes: int, seed: int):
    """(logits [I, Q, K], boxes [I, Q, 4] as middles): near some of the objects, and anywhere."""
    image, classes, corner, sides, _ = truth
    rng, num = np.random.default_rng(seed), int(image.max()) + 1
    logits = rng.normal(-4, 1, (num, num_queries, num_classes)).astype(np.float32)
    boxes = rng.uniform(20, 300, (num, num_queries, 4)).astype(np.float32)
    for number in range(num):
        rows = np.flatnonzero(image == number)
        for query, row in enumerate(np.repeat(rows, 2)[:num_queries]):
            near = sides[row] * rng.normal(1, 0.15, 2)
            middle = corner[row] + sides[row] * rng.normal(0.5, 0.1, 2)
            boxes[number, query] = [*middle, *np.abs(near)]
            right = rng.uniform() < 0.8
            logits[number, query, classes[row] if right else 0] = rng.normal(0, 2)
    return logits, boxes


def post_processed(found):
    """(scores, classes, corners) of the surest pairs of every image."""
    import jax
    import jax.numpy as jnp

    from dinojax.tasks.detection_losses import Found
    from dinojax.tasks.detr import detected

    logits, boxes = found
    sizes = jnp.full((len(logits), 2), _SIDE)
    run = jax.jit(lambda *x: detected(Found(*x), sizes, sizes, count=_KEPT))
    return [np.asarray(x) for x in run(logits, boxes)]


def ours(truth, told, num_classes: int) -> np.ndarray:
    from dinojax.tasks import coco_ap

    image, classes, corner, sides, crowd = truth
    boxes_N4 = np.concatenate([corner, sides], axis=1)
    objects = coco_ap.Truth(image, classes, boxes_N4, np.prod(sides, axis=1), crowd)
    scores, labels, corners = told
    images = np.repeat(np.arange(len(scores)), _KEPT)
    rows = (x.reshape(len(images), *x.shape[2:]) for x in (labels, _sides(corners), scores))
    detections = coco_ap.Detected(images, *rows)
    summary = coco_ap.average_precision(objects, detections, np.arange(num_classes)).summary()
    return np.array(list(summary.values()))


def theirs(truth, told, num_classes: int) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = content(truth, num_classes)
        known.createIndex()
        results = known.loadRes(_results(told))
        judged = COCOeval(known, results, "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged.stats


def content(truth, num_classes: int) -> dict:
    """The objects as a file of COCO has them."""
    columns = zip(*truth, strict=True)
    annotations = [
        {
            "id": number + 1,
            "image_id": int(image),
            "category_id": int(label),
            "bbox": [*map(float, corner), *map(float, sides)],
            "area": float(np.prod(sides)),
            "iscrowd": int(crowd),
        }
        for number, (image, label, corner, sides, crowd) in enumerate(columns)
    ]
    images = [
        {"id": number, "width": _SIDE, "height": _SIDE} for number in range(int(truth[0].max()) + 1)
    ]
    categories = [{"id": number, "name": str(number)} for number in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}}


def _results(told) -> list[dict]:
    scores, labels, corners = told
    sides = _sides(corners)
    return [
        {
            "image_id": image,
            "category_id": int(labels[image, row]),
            "bbox": [float(x) for x in sides[image, row]],
            "score": float(scores[image, row]),
        }
        for image in range(len(scores))
        for row in range(_KEPT)
    ]


def _sides(corners: np.ndarray) -> np.ndarray:
    """(left, top, width, height) in float64, so that both sides count with the same digits."""
    wide = corners.astype(np.float64)
    return np.concatenate([wide[..., :2], wide[..., 2:] - wide[..., :2]], axis=-1)


if __name__ == "__main__":
    main()

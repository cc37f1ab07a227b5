#!/usr/bin/env bash
# pycocotools 2.0.11. Guess: annotations may have any ids that differ. Instead an id of 0 means "not matched":
# its object counts as missed and the detection that found it as a false alarm. Perfect detections of four
# objects reach an AP of 0.56, of twenty 0.89, of a hundred 0.98. Data sets that number their annotations from
# 0 lose a little AP for ever, and more in small subsets; scores of heads on them are not those of others.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet pycocotools==2.0.11 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import contextlib
import importlib.metadata
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def average_precision(objects, first):
    """Of perfect detections, one object to an image, when ids of annotations start from `first`."""
    truth = COCO()
    box = {"category_id": 1, "bbox": [10, 10, 40, 40]}
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "width": 100, "height": 100} for i in range(objects)],
        "categories": [{"id": 1, "name": "one"}],
        "annotations": [
            {"id": first + i, "image_id": i, "area": 1600, "iscrowd": 0, **box}
            for i in range(objects)
        ],
    }
    truth.createIndex()
    detections = [{"image_id": i, "score": 0.9 - i / 1000, **box} for i in range(objects)]
    judge = COCOeval(truth, truth.loadRes(detections), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return round(float(judge.stats[0]), 4)


found = {}
with contextlib.redirect_stdout(io.StringIO()):
    for objects in (4, 20, 100):
        found[objects] = {first: average_precision(objects, first) for first in (0, 1)}
print("pycocotools", importlib.metadata.version("pycocotools"))
print("objects: AP of perfect detections, by first id:", found)
assert all(by_first[1] == 1.0 and by_first[0] < 1.0 for by_first in found.values())
assert found[4][0] < 0.6
PY
"$work/env/bin/python" "$work/show.py"

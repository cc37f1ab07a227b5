#!/usr/bin/env bash
# torchmetrics 1.9.0. Guess: the area under the ROC curve and average precision depend on the scores and not
# on how many come in one update. Instead each update decides for itself whether its scores are logits: if one
# lies outside of [0, 1], all of this update go through a sigmoid. Cosines, of which one in a hundred is
# negative, are thus mixed with sigmoids of cosines: the area is right, 0.8925, in updates of 256, where all
# meet a negative one, and 0.7992 in updates of 64, 0.8468 in updates of 16. Who scores pairs by cosine
# (copies, retrieval, verification) maps them to [0, 1] first.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.9.1 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import numpy as np
import sklearn
import torch
import torchmetrics
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

PAIRS = 4096
rng = np.random.default_rng(0)
same = rng.integers(0, 2, PAIRS)
cosines = (0.3 + 0.25 * same + 0.15 * rng.normal(size=PAIRS)).clip(-1, 1).astype(np.float32)


def measured(metric, scores, size):
    for start in range(0, PAIRS, size):
        part = slice(start, start + size)
        metric.update(torch.tensor(scores[part]), torch.tensor(same[part]))
    return round(float(metric.compute()), 4)


right = [round(float(score(same, cosines)), 4) for score in (roc_auc_score, average_precision_score)]
print("torchmetrics", torchmetrics.__version__, "scikit-learn", sklearn.__version__)
print("negative cosines:", round(float((cosines < 0).mean()), 3), "scikit-learn:", right)
found = {}
for size in (4096, 256, 64, 16, 1):
    for name, scores in (("cosines", cosines), ("in [0, 1]", (1 + cosines) / 2)):
        metrics = BinaryAUROC(), BinaryAveragePrecision()
        found[size, name] = [measured(metric, scores, size) for metric in metrics]
    print(f"updates of {size}:", found[size, "cosines"], "of (1 + cosine) / 2:", found[size, "in [0, 1]"])
assert all(found[size, "in [0, 1]"] == right for size in (4096, 256, 64, 16, 1))
assert found[4096, "cosines"] == right and found[64, "cosines"][0] < right[0] - 0.05
assert len({found[size, "cosines"][0] for size in (256, 64, 16, 1)}) == 4
PY
"$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# scikit-learn 1.9.1. Guess: PCA takes the mean off first, so an offset that all rows share changes nothing.
# Instead the solver it chooses by itself for many rows and few columns (covariance_eigh) takes the mean's
# product from that of the raw rows, in their dtype. In float32, with a mean of 300 beside a spread of 0.5 to
# 2, the first component is rounding: 16.6 of variance where no direction has more than 4, along 0.08 of the
# right one. Patch features have such offsets, and their pictures are three components. svd_solver="full",
# float64 or taking the mean off oneself are right.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet scikit-learn==1.9.1 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import numpy as np
import sklearn
from sklearn.decomposition import PCA

rng = np.random.default_rng(0)
spread = np.linspace(2, 0.5, 64)
tokens = (rng.normal(size=(20_000, 64)) * spread).astype(np.float32)
print("scikit-learn", sklearn.__version__, "numpy", np.__version__)
found = {}
for offset in (0, 30, 300, 1000):
    x = tokens + np.float32(offset)
    right = PCA(3).fit(x.astype(np.float64))
    ways = {
        "chosen": PCA(3).fit(x),
        "full": PCA(3, svd_solver="full").fit(x),
        "mean taken off": PCA(3).fit(x - x.mean(0, dtype=np.float64).astype(np.float32)),
    }
    for name, pca in ways.items():
        off = pca.explained_variance_ / right.explained_variance_ - 1
        along = float(abs(pca.components_[0] @ right.components_[0]))
        found[offset, name] = float(np.abs(off).max()), along
        print(f"offset {offset}, {name} ({pca._fit_svd_solver}):", end=" ")
        print(f"variance {pca.explained_variance_.round(2)}, first component along the right one {along:.3f}")
assert all(error < 1e-4 and along > 0.99 for (_, name), (error, along) in found.items() if name != "chosen")
assert found[0, "chosen"][0] < 1e-4
for offset in (300, 1000):
    assert found[offset, "chosen"][0] > 1 and found[offset, "chosen"][1] < 0.5, found
PY
"$work/env/bin/python" "$work/show.py"

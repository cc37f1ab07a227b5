#!/usr/bin/env bash
# torch 2.13: torch.linspace in float32 is neither numpy's linspace in float32 nor the exact values
# rounded: it steps forwards from the start in the first half and backwards from the end in the
# second, in float32. From 0.1 to 0.5 (the ladder of mask ratios of DINOv2 and DINOv3, one bound per
# image and one more) no value differs for 8 images, 1 of 17 for 16, 25 of 257 for 256. By a last bit
# only, but the number of masked patches is int(N * ratio): whoever copies the ladder with numpy
# masks a patch more or less than torch does.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import numpy as np
import torch

found = {}
for images in (8, 16, 32, 64, 256, 4096):
    ladder = torch.linspace(0.1, 0.5, images + 1).numpy()
    exact = np.linspace(0.1, 0.5, images + 1)
    single = np.linspace(0.1, 0.5, images + 1, dtype=np.float32)
    found[images] = int((ladder != exact.astype(np.float32)).sum()), int((ladder != single).sum())
print("torch", torch.__version__, "numpy", np.__version__)
print("images: bounds that differ from the exact ones rounded, from numpy's in float32:", found)
assert found[8] == (0, 0) and found[16] == (1, 1) and found[256][0] == 25, found

patches = {}
for images in (16, 64, 256):
    ladder = torch.linspace(0.1, 0.5, images + 1).tolist()
    exact = np.linspace(0.1, 0.5, images + 1).astype(np.float32).tolist()
    for side in range(4, 65):
        counts = [[int(side * side * bound) for bound in bounds] for bounds in (ladder, exact)]
        if counts[0] != counts[1]:
            patches.setdefault(images, []).append(side * side)
print("images: patches of a crop with which a count of masked patches differs:", patches)
assert patches, "no count differs"
PY
"$work/env/bin/python" "$work/show.py"

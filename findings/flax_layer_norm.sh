#!/usr/bin/env bash
# flax 0.12.8: nn.LayerNorm takes the variance as mean(x^2) - mean(x)^2 by default (use_fast_variance), in
# float32. Tokens whose mean is large beside their spread lose it: with a spread of 1, a mean of 100 makes
# errors of 0.001, a mean of 1000 errors of 0.5, and from about 4000 on the variance can be cut off at 0
# and the outputs are in the thousands. PyTorch's layer_norm stays below 0.001 throughout. Features with
# large common offsets (registers, high-norm tokens, frozen stems) are where the two differ.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 flax==0.12.8 torch==2.13.0 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import flax
import flax.linen as nn
import jax
import numpy as np
import torch

found = {}
for mean in (0, 100, 1000, 4096, 10000):
    x = np.random.default_rng(0).normal(mean, 1, (64, 384)).astype(np.float32)
    wide = x.astype(np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)

    def error(got):
        return float(np.abs(np.asarray(got) - exact).max())

    def ours(fast):
        norm = nn.LayerNorm(use_fast_variance=fast)
        return norm.apply(norm.init(jax.random.key(0), x), x)

    theirs = torch.nn.functional.layer_norm(torch.tensor(x), (384,), eps=1e-6)
    found[mean] = error(ours(True)), error(ours(False)), error(theirs)
print("flax", flax.__version__, "torch", torch.__version__)
for mean, (default, slow, theirs) in found.items():
    print(f"mean {mean:5d}: largest error {default:.1e} by default, {slow:.1e} without, torch {theirs:.1e}")
assert found[0][0] < 1e-5 and found[100][0] > 3e-4
assert found[1000][0] > 0.1 and found[10000][0] > 100
assert all(slow < 3e-3 and theirs < 3e-3 for _, slow, theirs in found.values())
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

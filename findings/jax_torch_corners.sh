#!/usr/bin/env bash
# jax 0.10.2 and torch 2.13.0 give other gradients at corners: |x| at 0 is 1 in jax and 0 in torch, a
# value on the bound of clip 0.5 and 1, a vector norm at 0 is NaN and 0. An L1 loss of a prediction that
# is exact therefore pushes it in jax, a clipped value that lies on its bound moves half as fast, and the
# norm of two equal vectors spoils the step. relu at 0 is 0 in both, the maximum of equals half in both.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 torch==2.13.0 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
import torch

CASES = {
    "abs at 0": (jnp.abs, torch.abs, 0.0),
    "clip on its bound": (lambda x: jnp.clip(x, 0, 1), lambda x: torch.clamp(x, 0, 1), 1.0),
    "norm at 0": (lambda x: jnp.linalg.norm(x[None]), lambda x: torch.linalg.vector_norm(x[None]), 0.0),
    "relu at 0": (jax.nn.relu, torch.relu, 0.0),
    "maximum of equals": (lambda x: jnp.maximum(x, 1.0), lambda x: torch.maximum(x, torch.ones(())), 1.0),
}
found = {}
for name, (ours, theirs, at) in CASES.items():
    x = torch.tensor(at, requires_grad=True)
    theirs(x).backward()
    found[name] = float(jax.grad(ours)(at)), float(x.grad)
print("jax", jax.__version__, "torch", torch.__version__, found)
assert found["abs at 0"] == (1.0, 0.0) and found["clip on its bound"] == (0.5, 1.0), found
assert found["norm at 0"][0] != found["norm at 0"][0] and found["norm at 0"][1] == 0.0, found
assert found["relu at 0"] == (0.0, 0.0) and found["maximum of equals"] == (0.5, 0.5), found
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# jax 0.10.2 on the CPU: a float32 division is not rounded as IEEE 754 asks and numpy and torch do: of the
# 256 values of a byte, x / 255 differs in its last bit for about half, op by op and under jit, and a
# division by a traced array differs as well. Results below 1.2e-38 (denormals) become 0. Pixels that are
# scaled on the device are thus not bit for bit those of numpy or torch, which do agree with each other.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 torch==2.13.0 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import torch

pixels = np.arange(256, dtype=np.float32)
found = {}
for by in (255.0, 0.229):
    exact = pixels / np.float32(by)
    assert np.array_equal((torch.tensor(pixels) / torch.tensor(by, dtype=torch.float32)).numpy(), exact)
    ways = {
        "op by op": jnp.asarray(pixels) / jnp.float32(by),
        "jit": jax.jit(lambda x: x / np.float32(by))(pixels),
        "traced": jax.jit(lambda x, y: x / y)(pixels, np.float32(by)),
    }
    found[by] = {name: int((np.asarray(got) != exact).sum()) for name, got in ways.items()}
    for got in ways.values():
        np.testing.assert_allclose(got, exact, rtol=2e-7)
print("jax", jax.__version__, "values of 256 that differ, by divisor and way:", found)
assert all(number > 10 for ways in found.values() for number in ways.values()), found
half = jax.jit(lambda x: x * np.float32(0.5))(np.float32(1e-40))
print("1e-40 / 2:", float(half), "numpy:", float(np.float32(1e-40) * np.float32(0.5)))
assert half == 0 and np.float32(1e-40) * np.float32(0.5) > 0
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# torch 2.13.0, jax 0.10.2. Guess: antialias in torch's interpolate changes nothing where a grid grows, and
# jax's cubic is torch's bicubic. Instead the flag changes the kernel too: its coefficient is -0.75 and the
# border is repeated without it, -0.5 and renormalised with it, so that 37 to 50 gives other values. jax's
# "cubic" is the second, whatever its own antialias says. Bilinear is the same with and without. Learned
# positions of DINOv2 are resampled without antialias in one release and with it in the other: a model ported
# by the names of the functions has other positions at every size but its own.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 torch==2.13.0 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import jax
import numpy as np
import torch

jax.config.update("jax_enable_x64", True)
grid = np.random.default_rng(0).normal(size=(37, 37))


def in_torch(size, mode, antialias):
    x = torch.tensor(grid)[None, None]
    y = torch.nn.functional.interpolate(x, size=(size, size), mode=mode, antialias=antialias)
    return y[0, 0].numpy()


def apart(one, other):
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


print("torch", torch.__version__, "jax", jax.__version__, "largest difference, values of spread 1:")
for size in (16, 50, 74):
    jaxs = [jax.image.resize(grid, (size, size), "cubic", antialias=flag) for flag in (True, False)]
    found = {
        "bicubic, antialias or not": apart(*(in_torch(size, "bicubic", f) for f in (True, False))),
        "bilinear, antialias or not": apart(*(in_torch(size, "bilinear", f) for f in (True, False))),
        "jax, torch with antialias": apart(jaxs[0], in_torch(size, "bicubic", True)),
        "jax without, torch without": apart(jaxs[1], in_torch(size, "bicubic", False)),
    }
    print(f"37 to {size}:", {name: round(value, 4) for name, value in found.items()})
    assert found["jax, torch with antialias"] < 1e-9
    assert found["jax without, torch without"] > 0.1 and found["bicubic, antialias or not"] > 0.1
    assert (found["bilinear, antialias or not"] < 1e-9) == (size > 37)
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

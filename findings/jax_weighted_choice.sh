#!/usr/bin/env bash
# jax 0.10.2. Guess: jax.random.choice with p draws every item whose weight is not 0. Instead it looks a
# float32 uniform up in a float32 running sum, and such uniforms are multiples of 2^-23: at most 8,388,608
# items can ever be drawn. Of 2^24 equal weights every second item is never seen, the same ones for each key;
# without p all are. Who balances a pool of tens of millions of images by weights on the device trains on a
# fixed part of it. numpy draws in float64.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

DRAWS = 500_000
print("jax", jax.__version__, "numpy", np.__version__, "draws", DRAWS)
found = {}
for power in (22, 24):
    items = 2**power
    weights = jnp.full(items, 1 / items, jnp.float32)
    ways = {
        "jax, p": [jax.random.choice(jax.random.key(k), items, (DRAWS,), p=weights) for k in (0, 1)],
        "jax": [jax.random.choice(jax.random.key(k), items, (DRAWS,)) for k in (0, 1)],
        "numpy, p": [
            np.searchsorted(np.cumsum(np.full(items, 1 / items)), rng.random(DRAWS))
            for rng in map(np.random.default_rng, (0, 1))
        ],
    }
    for name, draws in ways.items():
        rests = np.bincount(np.concatenate(draws) % 4, minlength=4)
        found[power, name] = int((rests > 0).sum())
        print(f"2^{power} equal weights, {name}: draws of items 0, 1, 2, 3 modulo 4: {rests.tolist()}")
assert all(kinds == 4 for (power, name), kinds in found.items() if name != "jax, p" or power == 22)
assert found[24, "jax, p"] == 2, found
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# jax 0.10.2: compiled.cost_analysis() counts the body of a lax.scan once, whatever its length: 1 and 100
# matrix products of 64 x 64 have the same flops. The same products written out in a row are counted
# each. A utilisation (MFU) from this number is too small by about the number of scanned blocks.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp

x = jnp.ones((64, 64))
product = 2 * 64**3


def scanned(length):
    step = lambda carry, _: (carry @ carry, None)
    return jax.jit(lambda x: jax.lax.scan(step, x, None, length=length)[0])


@jax.jit
def in_a_row(x):
    for _ in range(10):
        x = x @ x
    return x


def products(function):
    return function.lower(x).compile().cost_analysis()["flops"] / product


found = {length: products(scanned(length)) for length in (1, 2, 10, 100)}
print("jax", jax.__version__, "products counted in a scan of:", found, "in a row of ten:", products(in_a_row))
assert all(0.99 < count < 1.01 for count in found.values()), found
assert products(in_a_row) > 9.99
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# jax 0.10.2 on the CPU: the gradient of a bfloat16 parameter that is broadcast over many rows is a sum
# with a bfloat16 total. A sum of ones ends at 256 by adding one after the other, whatever the number
# of rows; XLA's stages of 32 terms move where it ends: 8192 where 100,000 is right.
# The same parameter in a matrix product, or widened before the addition, gets the right sum.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp

ROWS, WIDTH = 100_000, 8
x = jax.random.normal(jax.random.key(0), (ROWS, WIDTH), jnp.bfloat16)


def broadcast(bias):
    return (x + bias.astype(jnp.bfloat16)).astype(jnp.float32).sum()


def widened(bias):
    return (x.astype(jnp.float32) + bias).astype(jnp.bfloat16).astype(jnp.float32).sum()


def product(bias):
    ones = jnp.ones((ROWS, 1), jnp.bfloat16)
    return (ones @ bias.astype(jnp.bfloat16)[None]).astype(jnp.float32).sum()


bias = jnp.zeros(WIDTH, jnp.float32)
found = {f.__name__: float(jax.jit(jax.grad(f))(bias)[0]) for f in (broadcast, widened, product)}
text = str(jax.make_jaxpr(jax.grad(broadcast))(bias))
print("jax", jax.__version__, jax.default_backend())
print("a sum in bfloat16 is traced:", "bf16[8] = reduce_sum" in text)
print("rows", ROWS, "gradients", found)
assert "bf16[8] = reduce_sum" in text
assert found["broadcast"] < 0.5 * ROWS, "it is right now"
assert abs(found["widened"] - ROWS) < 1e-3 * ROWS and abs(found["product"] - ROWS) < 5e-3 * ROWS
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

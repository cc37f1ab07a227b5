#!/usr/bin/env bash
# jax 0.10.2: jax.numpy.sum and cumsum of bfloat16 are right to a rounding (9984 for 10,000 ones), sums
# that are scatters are not: segment_sum, bincount with weights and x.at[i].add stay at 256, where adding
# 1 changes nothing any more, on the CPU whatever the number of terms. Means per class or per cluster of
# features in bfloat16 are thereby wrong by the size of the class.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp

ones, to = jnp.ones(10_000, jnp.bfloat16), jnp.zeros(10_000, jnp.int32)
dense = {"sum": ones.sum(), "cumsum": jnp.cumsum(ones)[-1], "dot": ones @ ones}
scattered = {
    "segment_sum": jax.ops.segment_sum(ones, to, 1)[0],
    "bincount": jnp.bincount(to, weights=ones, length=1)[0],
    "at add": jnp.zeros(1, jnp.bfloat16).at[to].add(ones)[0],
}
print("jax", jax.__version__)
print({name: float(value) for name, value in {**dense, **scattered}.items()})
assert all(abs(float(value) - 10_000) < 40 for value in dense.values())
assert all(float(value) == 256 for value in scattered.values())
assert jax.ops.segment_sum(ones.astype(jnp.float32), to, 1)[0] == 10_000
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

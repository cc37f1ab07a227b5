#!/usr/bin/env bash
# jax 0.10.2: jax.random.uniform in bfloat16 knows 128 values, all multiples of 1/128, and is exactly 0
# once in 128 draws. bernoulli compares such draws when its probability is a bfloat16: one of 0.001 comes
# true 8 times as often, one of 0.9999 always. Drop path and masks that take their rate in the compute
# dtype of the model get another rate; a Python float keeps it.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp

key = jax.random.key(0)
draws = jax.random.uniform(key, (1_000_000,), jnp.bfloat16).astype(jnp.float32)
print("jax", jax.__version__, "values:", len(jnp.unique(draws)), "share of 0:", float((draws == 0).mean()))
assert len(jnp.unique(draws)) == 128 and (draws * 128 == jnp.round(draws * 128)).all()
found = {}
for rate in (0.1, 0.001, 0.9999):
    shares = [float(jax.random.bernoulli(key, p, (1_000_000,)).mean()) for p in (rate, jnp.bfloat16(rate))]
    found[rate] = shares
    print(f"rate {rate}: float {shares[0]:.5f}, bfloat16 {shares[1]:.5f}")
assert found[0.001][0] < 0.0012 and found[0.001][1] > 0.007
assert found[0.9999][0] < 1 and found[0.9999][1] == 1
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

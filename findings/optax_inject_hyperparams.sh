#!/usr/bin/env bash
# jax 0.10.2, optax 0.2.8. Guess: inject_hyperparams, the way to log or change a learning rate, leaves an
# optimizer as it was. Instead it makes arrays of all its numbers in the dtype of the parameters: with
# bfloat16 ones Adam's b2 of 0.999 becomes 1, the correction of its start divides 0 by 0, and every parameter
# is NaN after one step. b1 becomes 0.8984. The same optimizer without the wrapper trains, and so does it with
# hyperparam_dtype=jnp.float32 or with float32 masters.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 optax==0.2.8
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
import optax

OPTIMIZERS = {
    "plain": optax.adam(1e-2),
    "wrapped": optax.inject_hyperparams(optax.adam)(1e-2),
    "wrapped, told": optax.inject_hyperparams(optax.adam, hyperparam_dtype=jnp.float32)(1e-2),
}
print("jax", jax.__version__, "optax", optax.__version__)
found = {}
for dtype in ("float32", "bfloat16"):
    for name, optimizer in OPTIMIZERS.items():
        params = jnp.ones(1, dtype)
        state = optimizer.init(params)
        kept = {k: round(float(v), 6) for k, v in getattr(state, "hyperparams", {}).items() if k[0] in "bl"}
        updates, _ = optimizer.update(jnp.full(1, 0.5, dtype), state, params)
        found[dtype, name] = float(optax.apply_updates(params, updates)[0])
        print(f"{dtype}, {name}: {kept}; 1 after a step: {found[dtype, name]:.4f}")
wrong = found.pop(("bfloat16", "wrapped"))
assert wrong != wrong
assert all(abs(value - 0.99) < 0.003 for value in found.values()), found
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

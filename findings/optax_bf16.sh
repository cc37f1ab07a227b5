#!/usr/bin/env bash
# jax 0.10.2, optax 0.2.8. Guess: with bfloat16 parameters Adam is coarser, but its second moment follows the
# gradients, and clip_by_global_norm(1) leaves a norm of 1. Instead the second moment has the parameters'
# dtype (mu_dtype is for the first alone), and 0.999 of a value rounds back to it: it stops at 0.5 where 1 is
# right and never falls again. After gradients of 1, those of 0.01 make updates of 0.014 where 1 is right,
# 25,000 steps later still. The norm adds leaves up in bfloat16 and stays at 16: 1024 leaves of 1 are clipped
# to a norm of 2. Float32 masters cure both.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 optax==0.2.8
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
import optax

print("jax", jax.__version__, "optax", optax.__version__)
adam, clip = optax.scale_by_adam(), optax.clip_by_global_norm(1.0)


@jax.jit
def updated(state, grad, steps):
    one = lambda _, was: adam.update(grad, was[1])
    return jax.lax.fori_loop(0, steps, one, (grad, state))


def norm(leaves):
    return float(jnp.sqrt(sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in leaves)))


found = {}
wide = optax.scale_by_adam(mu_dtype=jnp.float32).init(jnp.zeros(1, jnp.bfloat16))
print("mu_dtype=float32, parameters in bfloat16: moments in", wide.mu.dtype, wide.nu.dtype)
assert wide.nu.dtype == jnp.bfloat16
for dtype in (jnp.float32, jnp.bfloat16):
    state, name = adam.init(jnp.zeros(1, dtype)), jnp.dtype(dtype).name
    for grad, steps in ((1.0, 10_000), (0.01, 5_000), (0.01, 20_000)):
        update, state = updated(state, jnp.full(1, grad, dtype), steps)
        found[name, grad] = float(update[0]), float(state.nu[0])
        print(f"{name}: {steps} gradients of {grad}: update {found[name, grad][0]:.4f},", end=" ")
        print(f"second moment {found[name, grad][1]:.6f}")
    leaves = [jnp.ones(1, dtype)] * 1024
    told, clipped = float(optax.global_norm(leaves)), norm(clip.update(leaves, clip.init(leaves))[0])
    found[name] = told, clipped
    print(f"{name}: norm of 1024 leaves {told}, after clipping to 1 {clipped:.3f}")
assert found["float32", 1.0][1] > 0.999 and found["float32", 0.01][0] > 0.99
assert found["bfloat16", 1.0][1] == found["bfloat16", 0.01][1] == 0.5
assert found["bfloat16", 0.01][0] < 0.02
assert found["float32"][0] == 32 and abs(found["float32"][1] - 1) < 1e-3
assert found["bfloat16"] == (16, 2)
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

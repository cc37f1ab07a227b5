#!/usr/bin/env bash
# jax 0.10.2, optax 0.2.8, a mesh of Auto axes. Guess: the moments of Adam lie as the parameters do, whether
# init is jitted or not. Instead only init outside of jit follows them. Inside, moments are zeros that depend
# on no input, so nothing says where they go: beside parameters sharded over eight devices both moments lie
# whole on the first device, or, within set_mesh, whole on each. The first step spreads them, so that nobody
# sees it later; a model that fits only in parts runs out of memory before that step. jit needs out_shardings.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 optax==0.2.8
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
place = NamedSharding(mesh, PartitionSpec("d"))
params = {"kernel": jax.device_put(jnp.ones((1024, 1024)), place)}
adam = optax.adam(1e-3)


def held(state):
    """Bytes of the first moment on each device, as shares of the whole."""
    moment = state[0].mu["kernel"]
    return {s.device.id: s.data.nbytes / moment.nbytes for s in moment.addressable_shards}


def step(params, state):
    updates, state = adam.update(params, state, params)
    return optax.apply_updates(params, updates), state


found = {"init": held(adam.init(params)), "jit": held(jax.jit(adam.init)(params))}
with jax.set_mesh(mesh):
    found["jit in a mesh"] = held(jax.jit(adam.init)(params))
told = jax.tree.map(lambda x: place if x.ndim else None, jax.eval_shape(adam.init, params))
found["jit, told"] = held(jax.jit(adam.init, out_shardings=told)(params))
found["jit, after a step"] = held(jax.jit(step)(params, jax.jit(adam.init)(params))[1])
print("jax", jax.__version__, "optax", optax.__version__, "share of a moment by device:")
for name, shares in found.items():
    print(f"{name}: {shares}")
spread = {device: 1 / 8 for device in range(8)}
assert found["init"] == found["jit, told"] == found["jit, after a step"] == spread
assert found["jit"] == {0: 1.0}
assert found["jit in a mesh"] == {device: 1.0 for device in range(8)}
PY
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$work/env/bin/python" "$work/show.py"

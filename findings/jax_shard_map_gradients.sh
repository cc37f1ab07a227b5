#!/usr/bin/env bash
# jax 0.10.2. Guess: check_vma of shard_map only checks, and the data-parallel step of pmap (gradient of the
# local mean loss, then pmean) can be moved into it as it is. Instead, with check_vma on, the default,
# gradients by a parameter that all devices share come summed over them, and pmean of equals changes nothing:
# 28 where 3.5 is right, eight times too much on eight devices. Off, those lines are right, and the others
# (pmean of the loss, then the gradient) are not: each device has its own gradient, 0 to 7, in an output that
# claims to be the same everywhere. Adam hides a factor; clipping by norm, SGD and logged norms do not.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
weight = jnp.float32(2.0)
images = jnp.arange(8, dtype=jnp.float32)  # the right gradient is their mean, 3.5
placed = jax.device_put(images, NamedSharding(mesh, PartitionSpec("d")))


def mean_of_gradients(weight, images):
    return jax.lax.pmean(jax.grad(lambda w: jnp.mean(w * images))(weight), "d")


def gradient_of_mean(weight, images):
    return jax.grad(lambda w: jax.lax.pmean(jnp.mean(w * images), "d"))(weight)


def mapped(step, check):
    specs = PartitionSpec(), PartitionSpec("d")
    step = jax.shard_map(
        step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check
    )
    result = jax.jit(step)(weight, placed)
    return [float(shard.data) for shard in result.addressable_shards]


print("jax", jax.__version__, "right", float(images.mean()), "on each of eight devices:")
found = {}
for step in (mean_of_gradients, gradient_of_mean):
    for check in (True, False):
        found[step.__name__, check] = mapped(step, check)
        print(f"{step.__name__}, check_vma={check}: {found[step.__name__, check]}")
pmapped = jax.pmap(mean_of_gradients, axis_name="d", in_axes=(None, 0))(weight, images)
print("mean_of_gradients, pmap:", pmapped.tolist())
assert pmapped.tolist() == [3.5] * 8
assert found["mean_of_gradients", True] == [28.0] * 8
assert found["mean_of_gradients", False] == [3.5] * 8
assert found["gradient_of_mean", True] == [3.5] * 8
assert found["gradient_of_mean", False] != [3.5] * 8
PY
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# jax 0.10.2 on eight simulated devices. Guess: blocks that are scanned have weights stacked [layers, in,
# out], so sharding the first axis shares them out, and each turn of the loop fetches the layer it needs.
# Instead XLA gathers the whole stack before the loop: every device holds all layers at once, forward (1.03
# stacks) and backward (2.13), and the sharding saves nothing where it counts. Sharded over `in`, the same
# stack is gathered a layer at a time within the loop: 0.04 and 0.16 stacks.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cat > "$work/show.py" <<'PY'
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

LAYERS, WIDTH = 32, 256
STACK = LAYERS * WIDTH * WIDTH * 4  # bytes
mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))


def place(*axes):
    return NamedSharding(mesh, PartitionSpec(*axes))


def forward(stack, x):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, stack)[0]


def gradient(stack, x):
    return jax.grad(lambda stack: forward(stack, x).sum())(stack)


def compiled(function, axes):
    stack = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=place(*axes))
    x = jax.ShapeDtypeStruct((64, WIDTH), jnp.float32, sharding=place("d"))
    return jax.jit(function, out_shardings=None).lower(stack, x).compile()


print("jax", jax.__version__, f"a stack of {LAYERS} layers, sharded over its axis:")
found = {}
for function in (forward, gradient):
    for axes in (("d",), (None, "d")):
        program = compiled(function, axes)
        gathers = re.findall(r"= (\S+?)\{\S* all-gather\(", program.as_text())
        share = program.memory_analysis().temp_size_in_bytes / STACK
        name = function.__name__, ("layer", "in")[len(axes) - 1]
        found[name] = gathers, share
        print(f"{name}: all-gathers {gathers}, temporary memory {share:.2f} stacks")
whole, one = f"f32[{LAYERS},{WIDTH},{WIDTH}]", f"f32[{WIDTH},{WIDTH}]"
for function in ("forward", "gradient"):
    assert whole in found[function, "layer"][0] and found[function, "layer"][1] > 1, found
    assert whole not in found[function, "in"][0], found
assert one in found["forward", "in"][0] and found["forward", "in"][1] < 0.2, found
PY
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$work/env/bin/python" "$work/show.py"

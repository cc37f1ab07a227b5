#!/usr/bin/env bash
# jax 0.10.2 on the CPU. Guess: jax.checkpoint trades work for memory on every backend. Instead, where blocks
# are written out one after the other, XLA's CPU compiler drops the barriers that jax sets between the passes
# (prevent_cse, on by default) and finds what was to be computed twice again: flops and temporary memory are
# those without jax.checkpoint, to the byte. In a scan over blocks it works: 5.5 instead of 28.8 hidden
# arrays. Plans of memory on simulated devices, and tests that compare remat policies there, see nothing of it
# in unrolled blocks.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp

LAYERS, TOKENS, WIDTH, HIDDEN = 12, 4096, 64, 256
ONE = TOKENS * HIDDEN * 4  # bytes of the hidden array of a block
shape = jax.ShapeDtypeStruct
kernels = shape((LAYERS, WIDTH, HIDDEN), jnp.float32), shape((LAYERS, HIDDEN, WIDTH), jnp.float32)
x = shape((TOKENS, WIDTH), jnp.float32)


def block(x, kernels):
    return x + jnp.tanh(x @ kernels[0]) @ kernels[1]


def unrolled(block, kernels, x):
    for layer in range(LAYERS):
        x = block(x, (kernels[0][layer], kernels[1][layer]))
    return x.sum()


def scanned(block, kernels, x):
    return jax.lax.scan(lambda x, kernels: (block(x, kernels), None), x, kernels)[0].sum()


def seen(loss, block):
    lowered = jax.jit(jax.grad(lambda *inputs: loss(block, *inputs))).lower(kernels, x)
    compiled, barriers = lowered.compile(), lowered.as_text().count("optimization_barrier")
    held = compiled.memory_analysis().temp_size_in_bytes / ONE
    return barriers, compiled.as_text().count(" tanh("), compiled.cost_analysis()["flops"], round(held, 2)


print("jax", jax.__version__, "barriers asked for, tanh compiled, flops, hidden arrays held:")
found = {}
for loss in (unrolled, scanned):
    for name, own in {"plain": block, "checkpoint": jax.checkpoint(block)}.items():
        found[loss.__name__, name] = seen(loss, own)
        print(f"{loss.__name__}, {name}: {found[loss.__name__, name]}")
assert found["unrolled", "checkpoint"][0] == LAYERS
assert found["unrolled", "checkpoint"][1:] == found["unrolled", "plain"][1:]
assert found["scanned", "checkpoint"][3] < 0.25 * found["scanned", "plain"][3]
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

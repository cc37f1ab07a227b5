#!/usr/bin/env bash
# jax 0.10.2 on the CPU, numpy 2.4.6. Guess: jax.numpy.array copies, and so does device_put with
# may_alias=False; at worst the address decides nothing. Instead an array that begins at a multiple of 64
# bytes is used where it lies by device_put, may_alias=False or not, for good; one that does not, as large new
# arrays of numpy (16), is copied by all of them, array and arguments of jit too, after the call has returned.
# A loader that fills its buffer anew for the next batch changes the one that is under way: 20 of 20 batches
# of 64 images. With block_until_ready, or a new buffer for each batch, only device_put of aligned memory
# still does.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import functools

import jax
import jax.numpy as jnp
import numpy as np

SHAPE, TIMES = (64, 224, 224, 3), 20
BYTES = 4 * np.prod(SHAPE)
WAYS = {
    "array": jnp.array,
    "device_put": jax.device_put,
    "device_put, may_alias=False": functools.partial(jax.device_put, may_alias=False),
    "argument of jit": jax.jit(lambda x: x + 0),
}


def changed(put, offset, wait):
    """Batches of TIMES that are not the 0 they were made of, as the buffer then gets its next, 1."""
    raw = np.zeros(BYTES + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    buffer, found = raw[start : start + BYTES].view(np.float32).reshape(SHAPE), 0
    for _ in range(TIMES):
        buffer[:] = 0
        batch = put(buffer)
        if wait:
            batch.block_until_ready()
        buffer[:] = 1
        found += bool((np.asarray(batch) != 0).any())
    return found


print("jax", jax.__version__, "address of a new array modulo 64:", np.zeros(SHAPE, np.float32).ctypes.data % 64)
found = {}
for name, put in WAYS.items():
    for offset in (0, 16):
        found[name, offset] = changed(put, offset, False), changed(put, offset, True)
        print(f"{name}, address {offset}: changed of {TIMES}: {found[name, offset][0]},", end=" ")
        print(f"after block_until_ready {found[name, offset][1]}")
assert all(found[name, 16][0] > 0 and found[name, 16][1] == 0 for name in WAYS)
assert found["array", 0] == found["argument of jit", 0] == (0, 0)
assert all(found[name, 0] == (TIMES, TIMES) for name in WAYS if "put" in name)
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

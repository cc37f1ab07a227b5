#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2, optax 0.2.8. Guess: from_bytes fills the target, so that shapes and dtypes are
# those of the target, or it fails. Instead only names are compared, in one direction: a head of 1000 classes
# comes back into a network for 10 with shape [8, 1000], in the dtype of the file, moments of Adam with it,
# and a part that the target lacks is left out without a word. Only a missing part is an error. Orbax refuses
# all but the dtype. A backbone of another width or a head of another data set shows up in the first step, or,
# where shapes broadcast, not at all.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 flax==0.12.8 optax==0.2.8
cat > "$work/show.py" <<'PY'
import flax
import jax
import jax.numpy as jnp
import optax
from flax.serialization import from_bytes, to_bytes


def network(classes, dtype):
    return {"head": {"kernel": jnp.ones((8, classes), dtype), "bias": jnp.zeros(classes, dtype)}}


def shapes(tree):
    return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)


saved, target = network(1000, jnp.float32), network(10, jnp.bfloat16)
print("flax", flax.__version__)
back = from_bytes(target, to_bytes(saved))
print("target", shapes(target), "restored", shapes(back))
assert back["head"]["kernel"].shape == (8, 1000) and back["head"]["kernel"].dtype == jnp.float32

adam = optax.scale_by_adam()
moments = from_bytes(adam.init(target), to_bytes(adam.init(saved)))
print("moments of Adam", shapes(moments.mu))
assert moments.mu["head"]["kernel"].shape == (8, 1000)

more = {**saved, "neck": {"kernel": jnp.ones(3)}}
back = from_bytes(saved, to_bytes(more))
print("a part that the target lacks: restored", list(back))
assert list(back) == ["head"]
try:
    from_bytes(more, to_bytes(saved))
except ValueError as error:
    print("a part that the file lacks:", str(error).splitlines()[0])
else:
    raise AssertionError("a missing part is taken now")
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# jax 0.10.2, flax 0.12.8. Guess: attention of a query that sees no key is 0, or NaN, whichever way it is
# told. Instead a mask, and key_value_seq_lengths of 0, give the mean of all values, the hidden ones, with
# gradients into them; query_seq_lengths of 0 gives 0, and a bias of -inf NaN. Padded images, dropped patches
# and texts without words have such rows; pooled over all tokens they carry what was hidden into the features,
# and a check for NaN sees nothing.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 flax==0.12.8 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

q = k = jnp.ones((1, 4, 1, 8))
v = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], k.shape)  # of key n: n
attention = jax.nn.dot_product_attention
hidden = jnp.zeros((1, 1, 4, 4), bool)  # no query sees a key
WAYS = {
    "mask": lambda v: attention(q, k, v, mask=hidden),
    "key_value_seq_lengths of 0": lambda v: attention(q, k, v, key_value_seq_lengths=jnp.zeros(1, int)),
    "query_seq_lengths of 0": lambda v: attention(q, k, v, query_seq_lengths=jnp.zeros(1, int)),
    "bias of -inf": lambda v: attention(q, k, v, bias=jnp.where(hidden, 0.0, -jnp.inf)),
    "flax, mask": lambda v: nn.dot_product_attention(q, k, v, mask=hidden),
}
print("jax", jax.__version__, "flax", flax.__version__, "a query that sees none of the values 0, 1, 2, 3:")
found = {}
for name, way in WAYS.items():
    slope = jax.grad(lambda v, way=way: way(v)[0, 0, 0, 0])(v)[0, :, 0, 0]
    found[name] = float(way(v)[0, 0, 0, 0]), slope.tolist()
    print(f"{name}: {found[name][0]}, gradient of the values {found[name][1]}")
mean = 1.5, [0.25] * 4
assert found["mask"] == found["key_value_seq_lengths of 0"] == found["flax, mask"] == mean
assert found["query_seq_lengths of 0"] == (0, [0.0] * 4)
assert np.isnan(found["bias of -inf"][0])
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# optax 0.2.8, torch 2.13.0. Guess: a label outside of the classes is left out of the cross-entropy or is an
# error, as in torch. Instead softmax_cross_entropy_with_integer_labels takes -1 for the last class, with its
# full gradient, and gives NaN for 255, with a gradient that is finite: it pushes every class down, and a loss
# masked afterwards looks healthy where the gradient was not masked. -1 and 255 are what segmentation sets
# write where no one knows; a head trained on them learns the last class at every border. `where` leaves them
# out.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 optax==0.2.8 torch==2.13.0 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

logits = np.array([1.0, 2.0, 4.0], np.float32)
loss = optax.softmax_cross_entropy_with_integer_labels
print("optax", optax.__version__, "torch", torch.__version__)
found = {}
for label in (2, -1, 255):
    value, slope = jax.value_and_grad(loss)(jnp.asarray(logits), jnp.asarray(label))
    found[label] = float(value), np.asarray(slope)
    try:
        theirs = float(torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(label)))
    except IndexError as error:
        theirs = f"IndexError: {error}"
    print(f"label {label}: loss {value:.4f}, gradient {slope.round(3).tolist()}, torch: {theirs}")
    assert isinstance(theirs, float) == (label == 2)
assert found[-1][0] == found[2][0] and np.array_equal(found[-1][1], found[2][1])
assert np.isnan(found[255][0]) and np.isfinite(found[255][1]).all() and (found[255][1] > 0).all()
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

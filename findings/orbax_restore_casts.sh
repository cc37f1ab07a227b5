#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, StandardCheckpointer: a restore whose target names another dtype converts
# without a word, whatever is lost: 1.7 becomes 1 as int32, 3e9 becomes -2147483648, float32 becomes
# bfloat16. Another shape is refused, and so is another tree. A target that was built with the wrong
# dtype thus resumes a run from rounded masters.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 orbax-checkpoint==0.12.8
cat > "$work/show.py" <<'PY'
import tempfile

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

folder = tempfile.mkdtemp()
checkpointer = ocp.StandardCheckpointer()
saved = jnp.asarray([1.7, -2.5, 3e9, 1 + 2**-12], jnp.float32)
checkpointer.save(f"{folder}/one", {"x": saved})
checkpointer.wait_until_finished()
print("orbax-checkpoint", ocp.__version__, "saved", saved.tolist())
for dtype in (jnp.int32, jnp.bfloat16):
    target = {"x": jax.ShapeDtypeStruct(saved.shape, dtype)}
    restored = checkpointer.restore(f"{folder}/one", target)["x"]
    print("restored as", restored.dtype, restored.tolist())
    assert restored.dtype == dtype and (restored.astype(jnp.float32) != saved).any()
for name, tree, wanted in (
    ("another shape", {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}, "not compatible"),
    ("another tree", {}, "do not match"),
):
    try:
        checkpointer.restore(f"{folder}/one", tree)
    except ValueError as error:
        assert wanted in str(error), error
        print(name, "is refused")
    else:
        raise AssertionError(f"{name} is taken now")
checkpointer.close()
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"

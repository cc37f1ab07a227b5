#!/usr/bin/env bash
# jax 0.10.2: an all-reduce of bfloat16 on simulated CPU devices is carried out in float32: the compiled
# program converts, reduces in f32 and converts back, so 256 + 7 x 1 over eight devices is 264, the sum
# rounded once, where adding one after the other in bfloat16 stays at 256. A test on the CPU of what
# gradients lose when they cross devices in bfloat16 therefore sees none of it; look at the dtype that
# the traced program asks for, or compile ahead of time for the accelerator.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cat > "$work/show.py" <<'PY'
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

mesh = jax.make_mesh((8,), ("d",))
over, whole = PartitionSpec("d"), PartitionSpec()
total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "d"), mesh=mesh, in_specs=over, out_specs=whole))
x = jax.device_put(jnp.asarray([256, 1, 1, 1, 1, 1, 1, 1], jnp.bfloat16), NamedSharding(mesh, over))
one_by_one = jnp.bfloat16(0)
for value in x.tolist():
    one_by_one = one_by_one + jnp.bfloat16(value)
asked, made = str(jax.make_jaxpr(total)(x)), total.lower(x).compile().as_text()
reduces = [line.split(" all-reduce(")[0].split()[-1] for line in made.splitlines() if " all-reduce(" in line]
print("jax", jax.__version__, "asked for", "bf16" if "bf16[1]" in asked else "?", "made", reduces)
print("psum", total(x).tolist(), "one after the other", float(one_by_one))
assert "bf16[1]" in asked and reduces and all(kind.startswith("f32") for kind in reduces), (asked, reduces)
assert total(x).tolist() == [264] and one_by_one == 256
PY
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$work/env/bin/python" "$work/show.py"

#!/usr/bin/env bash
# jax 0.10.2 on eight simulated devices. Guess: the nearest of a bank that is sharded are found as the largest
# one is: each device sends its k candidates, and the best of them win. Instead top_k along a sharded axis
# gathers all scores onto every device first, 2,097,152 values, where argmax gathers 256. A reshape to
# [queries, devices, part] and a top_k of each part changes nothing. k-NN on ImageNet puts the scores of 1.3
# million images onto each device that held an eighth. A top_k within shard_map and one of the candidates
# gathers 1280 values, for the same neighbours.
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

QUERIES, BANK, WIDTH, K, DEVICES = 32, 65_536, 16, 5, 8
mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))
bank = jax.random.normal(jax.random.key(0), (BANK, WIDTH))
bank = jax.device_put(bank, NamedSharding(mesh, PartitionSpec("d")))
queries = jax.device_put(
    jax.random.normal(jax.random.key(1), (QUERIES, WIDTH)), NamedSharding(mesh, PartitionSpec())
)


def top_k(queries, bank):
    return jax.lax.top_k(queries @ bank.T, K)[1]


def argmax(queries, bank):
    return jnp.argmax(queries @ bank.T, axis=-1)


def reshaped(queries, bank):
    part = BANK // DEVICES
    values, index = jax.lax.top_k((queries @ bank.T).reshape(QUERIES, DEVICES, part), K)
    return best(values, index + part * jnp.arange(DEVICES)[:, None])


def best(values, index):
    chosen = jax.lax.top_k(values.reshape(QUERIES, -1), K)[1]
    return jnp.take_along_axis(index.reshape(QUERIES, -1), chosen, axis=1)


def mapped(queries, bank):
    def own(queries, bank):
        values, index = jax.lax.top_k(queries @ bank.T, K)
        return values, index + jax.lax.axis_index("d") * len(bank)

    rows, columns = PartitionSpec("d"), PartitionSpec(None, "d")
    parts = jax.shard_map(
        own, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=(columns, columns)
    )
    return best(*parts(queries, bank))


def most_gathered(function):
    text = jax.jit(function).lower(queries, bank).compile().as_text()
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
    return max((eval(shape.replace(",", "*")) for shape in shapes), default=0)


found = {function.__name__: most_gathered(function) for function in (top_k, reshaped, argmax, mapped)}
print("jax", jax.__version__, "values in the largest all-gather, of", QUERIES * BANK, "scores:", found)
assert found["top_k"] == found["reshaped"] == QUERIES * BANK
assert found["argmax"] == QUERIES * DEVICES and found["mapped"] == QUERIES * DEVICES * K
assert (jax.jit(mapped)(queries, bank) == jax.jit(top_k)(queries, bank)).all()
PY
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$work/env/bin/python" "$work/show.py"

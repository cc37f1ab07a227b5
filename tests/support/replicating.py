"""Compiles, for eight devices, a program in which an array has to become whole on its way."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def main() -> None:
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("x", "y"))
    before = NamedSharding(mesh, PartitionSpec("y", None, "x"))
    after = NamedSharding(mesh, PartitionSpec(None, ("x", "y"), None))

    def move(array):
        with jax.named_scope("layer"):
            array = jnp.cos(jax.lax.with_sharding_constraint(jnp.sin(array), before))
            return jax.lax.with_sharding_constraint(array + 1, after)

    array = jax.ShapeDtypeStruct((16, 16, 16), jnp.float32)
    jax.jit(move, in_shardings=before, out_shardings=after).lower(array).compile()
    print(json.dumps({}))


if __name__ == "__main__":
    main()

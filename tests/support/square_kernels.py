"""What a target's compiler sends for the gradient of a stack of square kernels that devices share.

    python -m tests.support.square_kernels '{"target": "v5p:4x8x8"}'

Prints bytes out of a device by kind of collective, and those that gathering all kernels takes,
or scattering their gradients.
"""

import json
import sys

import jax
import jax.numpy as jnp

from dinojax.plan import targets
from dinojax.plan.hlo import collectives
from dinojax.sharding import compiler_options, gather, mesh

DEPTH, WIDTH, HEADS = 2, 4096, 32
NAMES = ("heads", None, "width")


def main(asked: str) -> None:
    machine = targets.parse(json.loads(asked)["target"])
    layout = mesh.make("hsdp", targets.devices(machine), replicas=8)
    kernels = (DEPTH, HEADS, WIDTH // HEADS, WIDTH)

    def loss(kernels, x_BD):
        def layer(kernel, x_BD):
            x_BAE = x_BD.reshape(-1, HEADS, WIDTH // HEADS)
            return jnp.tanh(jnp.einsum("bae,aed->bd", x_BAE, kernel)) + x_BD

        def body(x_BD, kernel):
            return gather.with_weights(layer, kernel, NAMES, x_BD), None

        return jnp.sum(jax.lax.scan(body, x_BD, kernels)[0].astype(jnp.float32) ** 2)

    def shape(sizes, *names):
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=layout.sharding(*names))

    with mesh.use(layout):
        stored = layout.sharding("depth", *NAMES)
        arguments = shape(kernels, "depth", *NAMES), shape((4096, WIDTH), "image", None)
        grad = jax.jit(jax.grad(loss), out_shardings=stored).lower(*arguments)
    text = grad.compile(
        compiler_options=compiler_options.options(targets.devices(machine)[0])
    ).as_text()
    sent: dict[str, float] = {}
    for one in collectives(text):
        sent[one.kind] = sent.get(one.kind, 0.0) + one.wire
    group = layout.mesh.shape["fsdp"]
    parts = 2 * DEPTH * WIDTH * WIDTH * (group - 1) / group
    print(json.dumps({"sent": sent, "parts": parts}))


if __name__ == "__main__":
    main(sys.argv[1])

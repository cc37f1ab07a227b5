"""Sums with 16-bit totals in programs compiled for a target that is not there.

    python -m tests.support.compiled_sums '{"target": "h100:1x8", "kind": "vit"}'

kind: vit (a training step), convnext (of a distillation: the student's step and its teacher's
forward pass) or embed (an evaluation), all in bfloat16. Prints them as a JSON list.
"""

import json
import sys

import jax
import jax.numpy as jnp

from dinojax.plan import targets
from dinojax.plan.targets import OPTIONS
from dinojax.sharding import compiler_options, mesh
from dinojax.train import program
from tests.support import small
from tests.support.accumulators import of_compiled

HALF = "precision.compute=bfloat16"


def main(asked: str) -> None:
    options = json.loads(asked)
    machine = targets.parse(options["target"])
    devices = targets.devices(machine)
    own = (HALF, f"mesh.devices={machine.num_devices}", "model.attention=plain")
    if options["kind"] == "convnext":
        built = small.convnext(*own, devices=devices)
    else:
        config = small.config(*own)
        built = program.build(config, mesh.from_section(config.mesh, devices))
    with mesh.use(built.layout):
        lowered = [embedding(built, devices[0])] if options["kind"] == "embed" else [built.lower()]
    if (teacher_forward := built.teacher_forward) is not None:
        place = teacher_forward.places(
            teacher_forward.student_sharding(built.layout), built.layout.sharding()
        )
        lowered.append(teacher_forward.lower(place))
    texts = [
        one.compile(compiler_options=OPTIONS[machine.chip.platform]).as_text() for one in lowered
    ]
    print(json.dumps([line for text in texts for line in of_compiled(text)]))


def embedding(built: program.Program, device):
    """The forward pass of an evaluation, as `Program.embed` has it."""
    backbone = built.step.objective.backbone
    side, channels = 4 * backbone.spec.patch_size, backbone.spec.channels

    def embed(params, images):
        found = backbone.apply({"params": params}, [images])[0]
        return found.cls, jnp.mean(found.patches.astype(jnp.float32), axis=1)

    shape = (2 * built.layout.num_shards, side, side, channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=built.layout.sharding("image"))
    options = compiler_options.options(device)
    params = built.abstract_state().ema["backbone"]
    return jax.jit(embed, compiler_options=options).lower(params, images)


if __name__ == "__main__":
    main(sys.argv[1])

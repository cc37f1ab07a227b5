"""A step of text alignment, and what of its time is outside backbone, vision head and text tower.

Run: python -m benchmarks.text_step [--batch N] [--size PIXELS] [--rounds N]. Times the compiled
step (crops, both sides, loss, gradients, optimizer), and alone the forward and backward passes of
the networks on crops that are there, with a sum for a loss: one after the other in each round, so
that both see the same machine. One line of JSON: share = 1 - networks / step, the median of the
rounds' own, by processor time of this process (another load hardly moves it) and by the clock.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import config as configs
from dinojax.sharding import mesh
from dinojax.train import program

# A ViT-S and a text tower of half its depth, as narrow: what two cores can do.
SETTINGS = [
    *("start.source=nothing", "data.source=tiles", "text.vocabulary=tiles", "model.name=vits"),
    *("text.width=384", "text.depth=6", "text.num_heads=6", "precision.compute=float32"),
    *("mesh.devices=1", "mesh.strategy=dp", "model.remat=none", "text.context=32"),
]


def seconds(function, *args) -> tuple[float, float]:
    """(on the clock, of all threads of this process) of one call."""
    began, worked = time.perf_counter(), time.process_time()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - began, time.process_time() - worked


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    sizes = [f"batch_size={args.batch}", f"group_size={args.batch}"]
    sizes += [f"crops.global_size={args.size}", "data.box_size=256"]
    config = configs.load("dinotxt_vitl16", [*SETTINGS, *sizes])
    layout = mesh.from_section(config.mesh)
    built = program.build(config, layout)
    step, state = built.step, built.new_state()
    random = np.random.default_rng(0)
    batch = {
        "images": jnp.asarray(random.integers(0, 256, built.batch_shape), jnp.uint8),
        "sizes": jnp.full((args.batch, 2), 256, jnp.int32),
        "tokens": jnp.asarray(random.integers(0, 500, (args.batch, 32)), jnp.int32),
    }
    inputs = step.inputs(state, step.views(state, batch), batch)

    def networks(student, frozen, inputs):
        def total(student):
            found = step.objective.features(student, frozen, inputs)
            return jnp.sum(found.images_BE) + jnp.sum(found.texts_BE)

        return jax.grad(total)(student)

    whole, inner = jax.jit(step), jax.jit(networks)
    calls = (whole, state, batch, built.now(5000)), (inner, state.student, state.ema, inputs)
    for call in calls:
        seconds(*call)  # compiles
    times_R22 = np.array([[seconds(*call) for call in calls] for _ in range(args.rounds)])
    clock_R, worked_R = (1 - times_R22[:, 1] / times_R22[:, 0]).T
    row = {"name": "text_step", "batch": args.batch, "size": args.size, "unit": "s"}
    step_s, networks_s = np.median(times_R22[:, :, 1], axis=0).tolist()
    row |= {"value": step_s, "networks": networks_s, "share": float(np.median(worked_R))}
    row |= {"shares": worked_R.round(4).tolist(), "clock_share": float(np.median(clock_R))}
    print(json.dumps(row))


if __name__ == "__main__":
    main()

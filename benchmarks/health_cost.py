"""What the health values and the guard against non-finite numbers cost of a step.

    python -m benchmarks.health_cost --config tiny

value: median seconds of the step as it is; baseline: of the same step whose health values nobody
asks for, so that the compiler leaves them out (the guard stays; it decides what is kept). The two
run in turns, from one state. share: median over the turns of their ratio, minus 1; cpu_share: the
same of CPU seconds, which other work on the machine disturbs less. equal: the losses of the first
steps agree exactly. The images are noise in full boxes.
"""

import argparse
import time

import jax
import numpy as np

from benchmarks.rows import row
from dinojax import config as configs
from dinojax.sharding import gpu_memory, mesh
from dinojax.sharding.batch import global_batch
from dinojax.train import program

KEPT = ("total", "dino_", "ibot", "koleo", "gram", "grad_norm", "bad_steps")


def compiled(built: program.Program, *, health: bool):
    """The step, with every scalar or with those it had before there was health."""

    def step(state, batch, now):
        state, scalars = built.step(state, batch, now)
        kept = {n: x for n, x in scalars.items() if health or n.startswith(KEPT)}
        return state, kept

    state = built.abstract_state()
    images = built.layout.sharding("image")
    batch = {
        "images": jax.ShapeDtypeStruct(built.batch_shape, np.uint8, sharding=images),
        "sizes": jax.ShapeDtypeStruct((built.batch_shape[0], 2), np.int32, sharding=images),
    }
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, built.layout.sharding()))
    return jitted.lower(state, batch, built.now(0)).compile()


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args(argv)
    gpu_memory.set_share()
    config = configs.load(args.config, args.set)
    layout = mesh.from_section(config.mesh)
    built = program.build(config, layout)
    rng = np.random.default_rng(0)
    sizes = np.tile(np.int32(built.batch_shape[1:3]), (config.batch_size, 1))
    with mesh.use(layout):
        images = rng.integers(0, 256, built.batch_shape, dtype=np.uint8)
        batch = global_batch(layout, {"images": images, "sizes": sizes})
        steps = {health: compiled(built, health=health) for health in (True, False)}
        states = {health: built.new_state() for health in steps}
        seconds: dict[bool, list[float]] = {health: [] for health in steps}
        cpu: dict[bool, list[float]] = {health: [] for health in steps}
        losses: dict[bool, list] = {health: [] for health in steps}
        for number in range(args.repeats):
            for health, step in steps.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                states[health], scalars = step(states[health], batch, built.now(number))
                jax.block_until_ready((states[health], scalars))
                seconds[health].append(time.perf_counter() - start)
                cpu[health].append(time.process_time() - cpu_start)
                losses[health].append(float(scalars["total"]))
    value, baseline = (float(np.median(seconds[health][2:])) for health in (True, False))
    shares = {
        name: float(np.median(np.array(spent[True][2:]) / np.array(spent[False][2:]))) - 1.0
        for name, spent in (("share", seconds), ("cpu_share", cpu))
    }
    row(
        name="health_cost",
        config={"config": args.config, "set": args.set},
        value=round(value, 5),
        unit="s",
        baseline=round(baseline, 5),
        ratio=round(baseline / value, 4),
        equal=losses[True][:2] == losses[False][:2],
        **{name: round(share, 4) for name, share in shares.items()},
    )


if __name__ == "__main__":
    main()

"""52 linear heads on one forward pass against 52 runs of their own, the backbone's pass in both.

    python -m benchmarks.linear_heads
    python -m benchmarks.linear_heads --batch-size 64 --classes 1000 --size 64

One JSON line. value: seconds of a step of all heads together; baseline: 52 times that of a step of
one, the mean over a head of each set of features. equal: after the same steps every head's weights
agree within 1e-5 with those of the head alone (of the first of each set).
"""

import argparse
import functools
import time

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    from benchmarks.rows import row
    from dinojax.eval.heads import Head, grouped
    from dinojax.eval.linear import PROTOCOLS, families

    own = PROTOCOLS["dinov2"]
    read = families(own["blocks"], own["mean"])
    grid = tuple(Head("+".join(names), lr) for names in read for lr in own["lrs"])
    forward = backbone(args, tuple(dict.fromkeys(n for names in read for n in names)))
    firsts = [numbers[0] for numbers in grouped(grid).values()]
    together, params = run(forward, grid, args)
    alone, differences = [], []
    for number in firsts:
        seconds, found = run(forward, (grid[number],), args, all_heads=grid, number=number)
        alone.append(seconds)
        name = grid[number].features
        place = grouped(grid)[name].index(number)
        for part, value in found[name].items():
            differences.append(float(np.max(np.abs(value[0] - params[name][part][place]))))
    baseline = len(grid) * float(np.mean(alone))
    row(
        name="linear_heads",
        config={**vars(args), "heads": len(grid)},
        value=round(together, 4),
        unit="s",
        baseline=round(baseline, 4),
        ratio=round(baseline / together, 2),
        equal=max(differences) < 1e-5,
        largest_difference=max(differences),
    )


def backbone(args, names):
    """images -> outputs, of a ViT-S/16 of random weights."""
    import jax
    import jax.numpy as jnp

    from dinojax.configs import base
    from dinojax.eval.network import forward_of
    from dinojax.models import zoo
    from dinojax.sharding import mesh

    config = base.get_config()
    config.model.name, config.model.width = "vits", args.width
    net = zoo.backbone(config.model, config.rope, channels=3, attention="plain", dtype=jnp.float32)
    images = jnp.zeros((1, args.size, args.size, 3))
    params = jax.jit(net.init)(jax.random.key(0), [images])["params"]
    layout = mesh.make("dp", 1)
    return functools.partial(forward_of(net, layout, names), params)


def run(forward, grid, args, *, all_heads=None, number: int = 0):
    """(seconds of a step, parameters at the end); of one head, from its start in the whole grid."""
    import jax

    from dinojax.eval import heads

    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch_size, args.size, args.size, 3)).astype(np.float32)
    labels = rng.integers(0, args.classes, args.batch_size).astype(np.int32)
    training = heads.Training(num_steps=100)
    step = jax.jit(functools.partial(heads.update, heads=grid, training=training))
    found = forward(images)
    widths = {h.features: _side_by_side(found, h.features).shape[1] for h in all_heads or grid}
    params = heads.init(all_heads or grid, widths, args.classes, seed=0)
    if all_heads is not None:
        name = grid[0].features
        place = heads.grouped(all_heads)[name].index(number)
        params = {name: {part: x[place : place + 1] for part, x in params[name].items()}}
    state, seconds = heads.start(params, training), []
    for _ in range(args.steps + 1):  # the first compiles
        began = time.perf_counter()
        found = forward(images)
        features = {name: _side_by_side(found, name) for name in {h.features for h in grid}}
        state, _ = step(state, features, labels)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]), jax.device_get(state["params"])


def _side_by_side(found, names: str):
    return np.concatenate([np.asarray(found[name]) for name in names.split("+")], axis=1)


if __name__ == "__main__":
    main()

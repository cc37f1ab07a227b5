"""Memory of heads and losses over many prototypes: scores in blocks against the plain definitions.

    python -m benchmarks.logits_memory                      # K = 262,144, this machine's compiler
    python -m benchmarks.logits_memory --target h100:1x1    # that of a machine one does not have
    python -m benchmarks.logits_memory --target h100:32x8 --strategy fsdp --images 16

One JSON line. value: peak bytes on a device of prototypes, targets, losses and their gradients,
compiled and not run, for cls tokens and masked patches of `--images` images on each device with
the crops of the 7B recipe; prototypes are stored as the strategy says. baseline: the same with
losses/sinkhorn.py, dino.py and ibot.py. equal: values and gradients of both agree to 1e-2 of the
largest entry (bfloat16) at a K small enough to be run.
"""

import argparse
import os
import subprocess
import sys

from dinojax.plan import targets
from dinojax.sharding import axes

TEMPERATURES = 0.1, 0.07  # of student and teacher
NUM_GLOBAL, NUM_LOCAL, MASKED = 2, 8, 76  # crops; masked patches of an image of the 7B recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu:1", help="as of `dinojax plan`")
    parser.add_argument("--strategy", default="fsdp", choices=axes.TABLE)
    parser.add_argument("--prototypes", type=int, default=262_144)
    parser.add_argument("--bottleneck", type=int, default=512)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return measure(args)
    target = targets.parse(args.target)
    targets.check_compiler(target)
    environment = os.environ | targets.environment(target)
    again = [sys.executable, "-m", "benchmarks.logits_memory", *sys.argv[1:], "--inside"]
    sys.exit(subprocess.run(again, env=environment, check=False).returncode)


def measure(args: argparse.Namespace) -> None:
    """Compile both, compare them at a small size, print the line."""
    from benchmarks.rows import row
    from dinojax.sharding import mesh

    target = targets.parse(args.target)
    layout = mesh.make(args.strategy, targets.devices(target))
    with mesh.use(layout):
        ours, plain = (peak(f, args, layout) for f in (in_blocks, plainly))
    row(
        name="logits_memory",
        config={key: value for key, value in vars(args).items() if key != "inside"},
        value=ours,
        unit="bytes",
        baseline=plain,
        ratio=round(plain / ours, 2),
        equal=agree(),
        share=round(ours / plain, 3),
    )


def peak(function, args, layout) -> int:
    """Bytes on one device of arguments, results and all in between, of value and gradient."""
    import jax
    import jax.numpy as jnp

    from dinojax.ops.flops import compiled_memory
    from dinojax.sharding import compiler_options

    def abstract(path, shape):
        is_kernel = path[-1].key == "kernel"
        place = layout.sharding(None, "prototype") if is_kernel else layout.sharding("image")
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

    shapes = jax.tree_util.tree_map_with_path(
        abstract,
        sizes(args.images * layout.num_shards, args.bottleneck, args.prototypes),
        is_leaf=_is_shape,
    )
    stored = jax.tree.map(lambda leaf: leaf.sharding, shapes[0])
    step = jax.jit(
        jax.value_and_grad(function),
        out_shardings=(layout.sharding(), stored),
        compiler_options=compiler_options.options(layout.mesh.devices.flat[0]),
    )
    platform = targets.parse(args.target).chip.platform
    options = targets.OPTIONS[platform]
    memory = compiled_memory(step.lower(*shapes).compile(compiler_options=options))
    if platform == "cpu":  # whose peak leaves temporary arrays out
        return memory["argument"] + memory["output"] + memory["temp"]
    return memory["peak"]


def sizes(images: int, bottleneck: int, prototypes: int) -> tuple[dict, dict]:
    """Shapes of (what has a gradient, what has none): rows and kernels of student and teacher."""
    kernel = (bottleneck, prototypes)
    masked = (images * MASKED, 1, bottleneck)
    return (
        {"cls": (images, NUM_GLOBAL + NUM_LOCAL, bottleneck), "masked": masked, "kernel": kernel},
        {"cls": (images, NUM_GLOBAL, bottleneck), "masked": masked, "kernel": kernel},
    )


def _is_shape(x) -> bool:
    return isinstance(x, tuple) and isinstance(x[0], int)


def _half(tree: dict) -> dict:
    import jax.numpy as jnp

    return {name: x.astype(jnp.bfloat16) for name, x in tree.items()}


def in_blocks(student, teacher):
    """Losses as training takes them."""
    from dinojax.losses import blockwise
    from dinojax.losses.dino import pair_mean

    student, teacher, total = _half(student), _half(teacher), 0.0
    for name in ("cls", "masked"):
        targets = blockwise.sinkhorn_factors(teacher[name], teacher["kernel"], TEMPERATURES[1])
        loss_BST, _ = blockwise.cross_entropy(
            student[name], student["kernel"], targets, TEMPERATURES[0]
        )
        total += pair_mean(loss_BST)
    return total


def plainly(student, teacher):
    """The same by the definitions."""
    import jax.numpy as jnp

    from dinojax.losses.dino import dino_loss
    from dinojax.losses.ibot import ibot_loss
    from dinojax.losses.sinkhorn import sinkhorn
    from dinojax.sharding import gather

    student, teacher, total = _half(student), _half(teacher), 0.0
    kernels = [gather.gather(tree["kernel"], None, "prototype") for tree in (student, teacher)]
    for name in ("cls", "masked"):
        logits = teacher[name] @ kernels[1]
        targets = sinkhorn(logits.reshape(-1, logits.shape[-1]), TEMPERATURES[1])
        scores = student[name] @ kernels[0]
        if name == "cls":
            targets = targets.reshape(logits.shape)
            total += dino_loss(scores, targets, temperature=TEMPERATURES[0])
        else:
            total += ibot_loss(
                scores[:, 0],
                targets,
                jnp.ones(len(targets)),
                num_crops=len(targets),
                temperature=TEMPERATURES[0],
            )
    return total


def agree() -> bool:
    """Whether values and gradients are the same at a K that can be run, in four blocks."""
    import jax
    import numpy as np

    from dinojax.losses import blockwise_logits

    rng = np.random.default_rng(0)
    made = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32) / shape[-1] ** 0.5,
        sizes(2, 64, 512),
        is_leaf=_is_shape,
    )
    blockwise_logits.BLOCK_BYTES = 1
    on_cpu = jax.default_device(jax.devices("cpu")[0])
    with on_cpu:
        found = [jax.jit(jax.value_and_grad(f))(*made) for f in (in_blocks, plainly)]
    pairs = zip(*map(jax.tree.leaves, found), strict=True)
    # Both round to bfloat16 at the same places, but for sums of gradients over blocks.
    return all(np.max(np.abs(a - b)) <= 1e-2 * np.max(np.abs(b)) for a, b in pairs)


if __name__ == "__main__":
    main()

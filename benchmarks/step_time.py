"""Step time, FLOPs and memory of any recipe, and each fast path against its plain variant.

    python -m benchmarks.step_time --config tiny
    python -m benchmarks.step_time --config vitl16_in1k --set batch_size=64 --variants
    python -m benchmarks.step_time --vits-cpu        # the figure that the README quotes

One JSON line per variant, the recipe's own last. value: median seconds of a step in this process;
baseline: the same of the plain variant, the two run in turns; equal: losses and gradient norms of
the first two steps agree to 1e-4. FLOPs are counted on the traced program with plain attention,
memory is the compiler's. The images are noise in full boxes: data loading is not measured.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from benchmarks.rows import row
from dinojax import config as configs
from dinojax.config import Config
from dinojax.monitor.compilation import Compiles
from dinojax.ops.flops import compiled_memory, count_flops
from dinojax.plan.targets import replaced
from dinojax.sharding import gpu_memory, mesh
from dinojax.sharding.batch import global_batch
from dinojax.train import program
from dinojax.train.program import Program

# ViT-S/16, 2 x 224 and 8 x 96 pixels, 4 images, 4,096 prototypes, float32, no drop path.
VITS_CPU = [
    "model.name=vits",
    "model.drop_path=0",
    "batch_size=4",
    "group_size=4",
    "dino_head.prototypes=4096",
    "ibot_head.prototypes=4096",
    "precision.compute=float32",
    "mesh.strategy=dp",
    "mesh.devices=1",
]
# Variant -> what makes it differ from the recipe, and from what its results may not differ.
VARIANTS = {
    "attention=xla": ["model.attention=xla"],
    "remat=dots": ["model.remat=dots"],
    "remat=full": ["model.remat=full"],
    "accumulate=2": ["accumulate=2"],
}
TOLERANCE = 1e-4


@dataclasses.dataclass
class Timed:
    """A compiled step with a state of its own."""

    built: Program
    step: object
    state: object
    batch: dict
    compile_seconds: float
    first: list[dict]  # scalars of the first two steps

    def seconds(self) -> float:
        """One step, from dispatch to its last number."""
        with Compiles() as compiles:
            start = time.perf_counter()
            self.state, scalars = self.step(self.state, self.batch, self.built.now(100))  # type: ignore[operator]
            jax.block_until_ready((self.state, scalars))
            seconds = time.perf_counter() - start
        compiles.refuse("the timed step")
        return seconds


def prepare(config: Config) -> Timed:
    layout = mesh.from_section(config.mesh)
    built = program.build(config, layout)
    rng = np.random.default_rng(0)
    num_images, height, width, _ = built.batch_shape
    sizes = np.tile(np.int32([height, width]), (num_images, 1))
    with mesh.use(layout):
        images = rng.integers(0, 256, built.batch_shape, dtype=np.uint8)
        batch = global_batch(layout, {"images": images, "sizes": sizes})
        start = time.perf_counter()
        step = built.lower().compile()
        compile_seconds = time.perf_counter() - start
        state, first = built.new_state(), []
        for _ in range(2):
            state, scalars = step(state, batch, built.now(100))
            first.append({name: float(value) for name, value in scalars.items()})
    return Timed(built, step, state, batch, compile_seconds, first)


def step_flops(config: Config, layout: mesh.Layout) -> int:
    """Of the step with plain attention: kernels of other libraries hide their products."""
    built = program.build(config.replaced({"model.attention": "plain"}), layout)
    with mesh.use(layout):
        return count_flops(built.step, *built.abstract_inputs())


def agree(ours: Timed, plain: Timed) -> bool:
    """Whether the first two steps gave the same losses and gradient norms."""
    return all(
        np.isclose(a[name], b[name], rtol=TOLERANCE, atol=TOLERANCE)
        for a, b in zip(ours.first, plain.first, strict=True)
        for name in a
    )


def report(name: str, config: Config, ours: Timed, plain: Timed | None, repeats: int) -> None:
    """Time in turns with the plain variant, so that a change of the machine hits both."""
    pairs = [
        (ours.seconds(), plain.seconds() if plain is not None else None) for _ in range(repeats)
    ]
    seconds = float(np.median([a for a, _ in pairs]))
    baseline = None if plain is None else float(np.median([b for _, b in pairs if b]))
    flops = step_flops(config, ours.built.layout)
    changed = {
        key: value for key, value in config.values().items() if config.sources[key] != "base"
    }
    row(
        name=f"step_time/{name}",
        config=changed,
        value=round(seconds, 5),
        unit="s",
        baseline=None if baseline is None else round(baseline, 5),
        ratio=None if baseline is None else round(baseline / seconds, 3),
        equal=None if plain is None else agree(ours, plain),
        images_per_second=round(config.batch_size / seconds, 2),
        gflop=round(flops / 1e9, 2),
        gflop_per_second=round(flops / seconds / 1e9, 2),
        compile_seconds=round(ours.compile_seconds, 1),
        memory=compiled_memory(ours.step),
        seconds_of_runs=[round(a, 4) for a, _ in pairs],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tiny", help="a recipe file, or a packaged name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps; the median counts")
    parser.add_argument("--variants", action="store_true", help="fast paths against plain ones too")
    parser.add_argument("--vits-cpu", action="store_true", help="ViT-S, batch 4, on one CPU")
    args = parser.parse_args()
    gpu_memory.set_share()
    recipe, overrides = args.config, args.set
    if args.vits_cpu:
        recipe, overrides = "vitl16_in1k", replaced(VITS_CPU, args.set)
    plain_config = configs.load(recipe, replaced(overrides, ["model.attention=plain"]))
    plain = prepare(plain_config)
    if args.variants:
        for name, changes in VARIANTS.items():
            config = configs.load(recipe, replaced(overrides, changes))
            report(name, config, prepare(config), plain, args.repeats)
    config = configs.load(recipe, overrides)
    chosen = prepare(config)
    same = chosen.built.step.objective.backbone == plain.built.step.objective.backbone
    report("recipe", config, chosen, None if same else plain, args.repeats)


if __name__ == "__main__":
    main()

"""The tiny recipe shrunk further for tests of the core, and a step that can be looked into.

Compiling is what such tests cost, so they share configs and leave XLA's optimizations off.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import config as configs
from dinojax.checkpoint.manager import Checkpoints
from dinojax.config import Config
from dinojax.models.heads import Head, HeadSpec
from dinojax.models.networks import Networks
from dinojax.models.vit import Vit, VitSpec
from dinojax.sharding import mesh
from dinojax.sharding.batch import global_batch, merge_batch
from dinojax.train import program, trainer
from dinojax.train.program import Program
from dinojax.train.step import META, Step
from dinojax.train.teacher import Teacher

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# Everything that could depend on devices is on; optim.eps is large because Adam makes an update
# of full length even out of a gradient that is nothing but rounding.
OVERRIDES = (
    *(
        "batch_size=32",
        "group_size=2",
        "data.box_size=40",
        "crops.num_local=2",
        "log.pictures=False",
    ),
    *("augment.blur_rates=0.0,0.0,0.0", "model.width=16", "model.num_heads=2"),
    *("model.num_registers=2", "model.drop_path=0.3", "rope.rescale=2.0", "optim.eps=1e-3"),
)
# The same for each stage of the recipe with several, without a k-NN: compiling is what counts.
STAGED = (
    *("batch_size=4", "group_size=2", "data.box_size=48", "crops.num_local=1"),
    *("model.width=8", "model.num_heads=1", "model.depth=1", "log.pictures=False"),
    *("dino_head.hidden=8", "dino_head.bottleneck=4", "dino_head.prototypes=16"),
    *("ibot_head.hidden=8", "ibot_head.bottleneck=4", "ibot_head.prototypes=16"),
    *("augment.blur_rates=0.0,0.0,0.0", "knn.every=None", "mesh.devices=1", "log.every=1"),
)
STEP = 3  # what the states made here have done


def config(*overrides: str) -> Config:
    """The tiny recipe, smaller than its `smoke`; overrides go last."""
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in OVERRIDES if override.split("=")[0] not in given]
    return configs.load("tiny", [*kept, *overrides], smoke=True)


@dataclasses.dataclass(frozen=True)
class Recorder(Step):
    """The step, whose scalars come with the targets of the whole batch and with the gradients."""

    seen: dict = dataclasses.field(default_factory=dict, compare=False)

    def targets(self, state, parts, now, teacher=None):
        targets, centers = super().targets(state, parts, now, teacher)
        rows = merge_batch(dataclasses.replace(targets, columns=None, whole={}))
        self.seen["targets"] = dataclasses.replace(rows, columns=targets.columns)
        return targets, centers

    def gradients(self, student, parts, targets, now):
        grads, terms = super().gradients(student, parts, targets, now)
        self.seen["grads"] = grads
        return grads, terms

    def __call__(self, state, batch, now, teacher=None):
        state, scalars = super().__call__(state, batch, now, teacher)
        return state, {"scalars": scalars, **self.seen}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled recording step and what it takes."""

    program: Program
    step: Any
    teacher: tuple = ()  # its parameters, where it is frozen
    lowered: Any = None  # the step as it was before

    def __call__(self, state=None, *, now: dict | None = None):
        """(next state, {"scalars", "targets", "grads"}); the state is donated."""
        with mesh.use(self.program.layout):
            state = numbers(self.program) if state is None else state
            now = self.program.now(STEP) | (now or {})
            state, seen = self.step(state, images(self.program), now, *self.teacher)
        targets = jax.device_get(seen["targets"])
        rows = {"dino": targets.dino, "ibot": targets.ibot}
        whole = {name: dense(rows[name], columns) for name, columns in targets.columns.items()}
        return state, seen | {"targets": whole}


COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
SHAPE = re.compile(r"[a-z]+\d+\[([\d,]*)\]")


def collectives(compiled) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Every collective of a compiled program, with the `sides` of its results."""
    return [
        (name, [sides(map(int, shape.split(","))) for shape in SHAPE.findall(to) if shape])
        for to, name in COLLECTIVE.findall(compiled.as_text())
    ]


def sides(shape) -> tuple[int, ...]:
    """The sizes above 1 of a shape in ascending order: the same however it is transposed."""
    return tuple(sorted(size for size in shape if size > 1))


def travelling(leaf, *, whole: bool, stacked: bool = True) -> tuple[int, ...]:
    """Sides of a block's weight on its way: a matrix of the rows that a device stores, of each.

    leaf: of stacked blocks, or of one module; whole: with those of all devices.
    """
    first = int(stacked)
    shape = leaf.sharding.shard_shape(leaf.shape)[first:]
    sharded = [i for i, place in enumerate(leaf.sharding.spec[first:]) if place is not None]
    num_rows = shape[sharded[0]] if sharded else 1
    parts = math.prod(leaf.shape[first:]) // math.prod(shape) if whole else 1
    return sides((parts, num_rows, math.prod(shape) // num_rows))


def compiled(config: Config) -> Compiled:
    """Everything a config makes, its step recording and compiled quickly."""
    return compiled_program(program.build(config, mesh.from_section(config.mesh)))


def compiled_program(built: Program, *teacher) -> Compiled:
    """The same of a program; teacher: parameters of its frozen networks, if it has any."""
    step = Recorder(**{f.name: getattr(built.step, f.name) for f in dataclasses.fields(Step)})
    with mesh.use(built.layout):
        inputs = built.abstract_inputs()[:3]
        shardings = jax.tree.map(lambda leaf: leaf.sharding, inputs[0])
        # What is recorded stays where it is, or recording would add collectives.
        make = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        traced = make.lower(*inputs, *teacher)
        return Compiled(built, traced.compile(compiler_options=FAST), teacher, traced)


# A student whose patches are twice the teacher's; what a ConvNeXt does not read is as in base.py.
CONVNEXT = (
    *("model.name=convnext_tiny", "model.patch_size=32", "model.width=64", "model.depth=1"),
    *("model.num_heads=None", "model.num_registers=0", "model.ffn=None", "model.ffn_ratio=None"),
    *("model.layer_scale=1e-5", "rope.rescale=None"),
    *("optim.layer_decay=0.9", "optim.patch_embed_lr=0.2"),
    *("crops.global_size=64", "crops.local_size=32", "crops.num_local=1", "data.box_size=72"),
    *("knn.crop_size=64", "knn.resize_size=64", "distill.enabled=True"),
)


def convnext(*overrides: str, devices=None) -> Program:
    """A tiny ConvNeXt and its frozen teacher, a ViT with patches of 16 pixels and wider heads.

    devices: None = those of the config.
    """
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in CONVNEXT if override.split("=")[0] not in given]
    loaded = config(*kept, *overrides)
    dtype = jnp.dtype(loaded.distill.compute or loaded.precision.compute)
    sizes = dict(width=16, depth=2, num_heads=2, patch_size=16, dtype=dtype)
    spec = VitSpec(**sizes, channels=loaded.image.channels)
    own = dict(inputs=spec.width, num_layers=3, hidden=24, bottleneck=20, dtype=spec.dtype)
    heads = [
        Head(HeadSpec(prototypes=section.prototypes, **own))
        for section in (loaded.dino_head, loaded.ibot_head)
    ]
    teacher = Teacher("a test's", Networks(Vit(spec), *heads), None)
    return program.build(loaded, mesh.from_section(loaded.mesh, devices), teacher)


def teacher_numbers(built: Program) -> dict:
    """Parameters of the frozen networks, from numpy."""
    assert built.teacher_forward is not None
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        offset = 1.0 if path[-1].key in ("scale", "scale1", "scale2") else 0.0
        value = offset + 0.1 * rng.normal(size=leaf.shape)
        return jax.device_put(jnp.asarray(value, leaf.dtype), leaf.sharding)

    shapes = built.teacher_forward.teacher.abstract(built.layout)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def numbers(program: Program, seed: int = 0):
    """A state of numbers from numpy, each tree with its own, far from any special value."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        names = [str(getattr(key, "key", getattr(key, "name", None))) for key in path]
        if names[-1] == "key":
            return jax.device_put(jax.random.key(seed), leaf.sharding)
        value = np.asarray(STEP)
        if names[-1] not in ("step", "count"):
            noise = 0.1 * rng.normal(size=leaf.shape)
            offset = 1.0 if names[-1] in ("scale", "scale1", "scale2") else 0.0
            value = noise**2 if "nu" in names else offset + noise
        value = value.astype(leaf.dtype)
        # Each device takes its part: nothing is compiled, and no process asks another.
        return jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda part: np.array(value[part])
        )

    return jax.tree_util.tree_map_with_path(fill, program.abstract_state())


def images(program: Program) -> dict[str, jax.Array]:
    """A batch of boxes with images of all sizes, the same on any devices."""
    rng = np.random.default_rng(0)
    num, side = program.batch_shape[:2]
    batch = {
        "images": rng.integers(0, 256, program.batch_shape, np.uint8),
        "sizes": rng.integers(side // 2, side + 1, (num, 2)).astype(np.int32),
    }
    for name, dtype in program.metadata.items():  # with gaps
        values = rng.integers(-1, 3, num)
        batch[META + name] = np.where(values < 0, np.nan if dtype == np.float32 else -1, values)
        batch[META + name] = batch[META + name].astype(dtype)
    return global_batch(program.layout, batch)


def saved_run(directory, *overrides: str):
    """Make the directory of a run that has saved step 3; returns its state."""
    chosen = config(*overrides, "mesh.devices=1")
    built = program.build(chosen, mesh.from_section(chosen.mesh))
    with mesh.use(built.layout):
        state = numbers(built)
    checkpoints = Checkpoints(directory / "checkpoints/pretrain", keep_last=1, keep_every=None)
    checkpoints.save(state, step=3, meta={"config": chosen.to_dict()})
    checkpoints.close()
    configs.save(chosen, directory / "config.json")
    return state


def twisted(devices, shape) -> np.ndarray:
    """In place of topology.arrange: a mesh of another shape has another order, as on a torus."""
    order = np.array(sorted(devices, key=lambda device: device.id), dtype=object)
    return np.roll(order, 1 + shape[0]).reshape(tuple(shape))


def assert_close(got, want, tolerance: float = 1e-5):
    """Leaf by leaf, relative to the largest entry of each; keys and integers exactly."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert np.all(np.isfinite(b)), name
        largest = np.max(np.abs(b), initial=0.0) if b.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(a, b, rtol=0.0, atol=tolerance * largest, err_msg=name)


def same(got, want) -> bool:
    """Whether two trees are equal to the last bit."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def dense(rows, columns):
    """Targets [B, T, K] from their factors."""
    scores = rows.rows_BTZ @ columns.kernel_ZK / columns.temperature
    return np.exp(scores + columns.log_u_K[None, None] + rows.log_v_BT[..., None])


def flat_smoke() -> list[str]:
    """What the tiny recipe's `smoke` changes, as `key=value` strings for the command line."""
    full, smoke = configs.load("tiny"), configs.load("tiny", smoke=True)
    return [f"{key}={value!r}" for key, _, value in configs.diff(full, smoke)]


def share_programs(patch) -> None:
    """All runs take one compiled step, first state and embedding, for a module of one recipe."""
    kept: dict[str, Any] = {}

    def once(name, make):
        """The first result for all calls; a state is copied, for the step takes it over."""

        def get(*args):
            if name not in kept:
                kept[name] = make(*args)
            found = kept[name]
            return jax.tree.map(jnp.copy, found) if name == "state" else found

        return get

    patch.setattr(trainer, "compile_step", once("step", lambda built: built.lower().compile(FAST)))
    patch.setattr(Program, "new_state", once("state", Program.new_state))
    patch.setattr(Program, "embed", once("embed", Program.embed))

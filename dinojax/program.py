"""From a config to a compiled step: the one place where sections become parts."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax import adapters, hosts, mesh, optim, shares, stages
from dinojax import state as states
from dinojax.adapters import AdapterSpec, num_trained
from dinojax.augment.spec import ViewSpec
from dinojax.config import Config
from dinojax.eval.features import EvalTransform
from dinojax.mesh import Layout
from dinojax.models import attention, zoo
from dinojax.models.heads import Head
from dinojax.models.vit import Vit, VitSpec, num_kept
from dinojax.objective import GramSpec, LossSpec, Objective
from dinojax.state import State
from dinojax.step import Step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config makes on a layout. Use its methods within `mesh.use(program.layout)`."""

    layout: Layout
    step: Step
    schedules: Callable[[int], dict[str, float]]  # step -> the scalars `now`
    seed: int
    batch_shape: tuple[int, int, int, int]  # B, S, S, C of the global batch
    eval_transform: EvalTransform

    def new_state(self) -> State:
        """The state before the first step, a function of the seed alone."""
        return states.create(self.step.objective, self.step.optimizer, self.layout, self.seed)

    def abstract_state(self) -> State:
        return states.abstract(self.step.objective, self.step.optimizer, self.layout)

    def now(self, step: int) -> dict[str, np.float32]:
        """The schedules' values at a step, as the compiled step takes them."""
        return {name: np.float32(value) for name, value in self.schedules(step).items()}

    def abstract_inputs(self) -> tuple[State, dict, dict]:
        """(state, batch, now): what the step takes, as shapes and shardings."""
        images, scalar = self.layout.sharding("image"), self.layout.sharding()
        batch = {
            "images": jax.ShapeDtypeStruct(self.batch_shape, jnp.uint8, sharding=images),
            "sizes": jax.ShapeDtypeStruct((self.batch_shape[0], 2), jnp.int32, sharding=images),
        }
        now = {
            name: jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar)
            for name in self.schedules(0)
        }
        return self.abstract_state(), batch, now

    def lower(self):
        """The step traced for this layout, from shapes alone; the state is donated."""
        inputs = self.abstract_inputs()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, inputs[0])
        step = jax.jit(
            self.step, donate_argnums=0, out_shardings=(shardings, self.layout.sharding())
        )
        return step.lower(*inputs)

    def embed(self) -> Callable[[dict, Any], tuple[jax.Array, jax.Array, jax.Array]]:
        """(backbone parameters, images [B, H, W, C]) -> cls [B, D], mean of patches, patches.

        Compiled once per image size; B is filled up to a multiple of the data shards. Of several
        processes each needs its own rows of the images alone (shares.own_rows); the results may
        lie on the devices of all (hosts.fetch).
        """

        @hosts.together
        @jax.jit
        def apply(params, images_BHWC):
            images_BHWC = mesh.constrain(images_BHWC, "image", None, None, None)
            found = self.step.objective.backbone.apply({"params": params}, [images_BHWC])[0]
            patches = found.patches.astype(jnp.float32)
            return found.cls.astype(jnp.float32), jnp.mean(patches, axis=1), patches

        def embed(params, images_BHWC):
            num = len(images_BHWC)
            fill = -num % self.layout.num_shards
            images_BHWC = np.pad(images_BHWC, ((0, fill), (0, 0), (0, 0), (0, 0)))
            images_BHWC = shares.from_own_rows(self.layout, images_BHWC)
            found = apply(params, images_BHWC)
            return tuple(x[:num] for x in found) if fill else found

        return embed


def build(config: Config, layout: Layout) -> Program:
    """Everything but data and files, from a checked config.

    Raises ValueError if groups do not fit the devices, or a part refuses its section.
    """
    mesh.check_groups(
        layout,
        batch_size=config.batch_size,
        group_size=config.group_size,
        accumulate=config.accumulate,
    )
    _check_koleo(config, layout)
    view_spec = ViewSpec.from_sections(
        image=config.image,
        crops=config.crops,
        augment=config.augment,
        masks=config.masks,
        patch_size=config.model.patch_size,
        group_size=config.group_size,
    )
    for note in view_spec.notes(config.data.box_size):
        log.info("%s", note)
    before = config.start.steps_before
    schedules = optim.schedules(
        config.schedules,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        freeze_last_layer=config.optim.freeze_last_layer,
        lr_scaling=config.optim.lr_scaling,
        steps_before=before if config.start.schedules == "continue" else 0,
    )
    if config.gram.enabled:
        _check_gram_weight(schedules, config.gram.anchor_step)
    objective = build_objective(config, images_per_step=_images_at_once(config, layout))
    return Program(
        layout=layout,
        step=Step(objective, build_optimizer(config, objective), view_spec, config.accumulate),
        schedules=schedules,
        seed=stages.stage_seed(config.seed, before),
        batch_shape=(config.batch_size, *[config.data.box_size] * 2, config.image.channels),
        eval_transform=EvalTransform.from_sections(image=config.image, knn=config.knn),
    )


def build_sizes(config: Config, layout: Layout) -> tuple[Program, ...]:
    """A program for every size that the steps of a stage may have, that of the plain keys first."""
    found = stages.sizes(config.crops, config.data.box_size)
    if len(found) == 1:
        return (build(config, layout),)
    shares = stages.rates(config.crops.more_rates)
    log.info("%d programs, one per size of crops:", len(found))
    for share, keys in zip(shares, found, strict=True):
        told = ", ".join(f"{key}={value}" for key, value in keys.items())
        log.info("  %.4g %% of the steps: %s", 100 * share, told)
    return tuple(build(config.replaced(keys), layout) for keys in found)


def _images_at_once(config: Config, layout: Layout) -> int:
    return config.batch_size // layout.num_shards // config.accumulate


def _check_gram_weight(schedules: Callable, anchor_step: int) -> None:
    """Raises ValueError if the Gram loss counts before there is an anchor.

    A weight is linear, then half a cosine, then constant: 0 at many places, it is 0 throughout.
    """
    for step in sorted({*np.linspace(0, max(anchor_step - 1, 0), 99).astype(int).tolist()}):
        weight = schedules(step)["gram_weight"]
        if step < anchor_step and weight:
            raise ValueError(
                f"schedules.gram_weight is {weight:.3g} at step {step}, before the anchor is there "
                f"(gram.anchor_step={anchor_step}); keep it at 0 until then: start=0, peak=0, "
                f"warmup={anchor_step}, and its value as end."
            )


def _check_koleo(config: Config, layout: Layout) -> None:
    """Which images share a micro-batch depends on the devices, so groups must not straddle."""
    size, images = config.losses.koleo_group or config.group_size, _images_at_once(config, layout)
    if config.accumulate > 1 and images % size:
        raise ValueError(
            f"losses.koleo_group={size} does not divide the {images} images that one device has in "
            f"one micro-batch (accumulate={config.accumulate}), so neighbours would depend on the "
            "number of devices; use accumulate=1, or a divisor of that number."
        )


def build_objective(config: Config, *, images_per_step: int) -> Objective:
    """Networks and losses. images_per_step: those one device works on at once.

    Raises ValueError for a ConvNeXt, whose patches cannot be hidden.
    """
    if config.model.name in zoo.CONVNEXTS:
        raise ValueError(
            f"model.name={config.model.name!r} cannot be pretrained: the iBOT loss hides patches "
            "of the student's input, and a ConvNeXt has no tokens to hide. Distil it from a "
            f"teacher, or choose from {list(zoo.VITS)}."
        )
    dtype = jnp.dtype(config.precision.compute)
    spec = zoo.vit_spec(
        config.model,
        config.rope,
        channels=config.image.channels,
        attention="plain",
        dtype=dtype,
    )
    spec = _with_attention(spec, config, images_per_step)

    def head(section):
        return Head(zoo.head_spec(section, inputs=spec.width, dtype=dtype))

    koleo_group = config.losses.koleo_group or config.group_size
    return Objective(
        backbone=Vit(spec),
        dino_head=head(config.dino_head),
        ibot_head=head(config.ibot_head),
        losses=zoo.fill(LossSpec, config.losses, koleo_group=koleo_group),
        gram=zoo.fill(GramSpec, config.gram) if config.gram.enabled else None,
        group_size=config.group_size,
    )


def _with_attention(spec: VitSpec, config: Config, images: int) -> VitSpec:
    """The attention that works on the shapes this run has, with the reasons in the log."""
    heads, shapes = (spec.num_heads, spec.head_width), []
    for size, count in (
        (config.crops.global_size, 2),
        (config.crops.local_size, config.crops.num_local),
    ):
        rows, columns = spec.grid(size, size)
        kept = num_kept(count * config.group_size, spec.drop_path) * images // config.group_size
        shapes.append((kept, 1 + spec.num_registers + rows * columns, *heads))
    choice = attention.choose(config.model.attention, shapes=shapes, dtype=spec.dtype)
    for reason in choice.reasons:
        log.info("%s", reason)
    return dataclasses.replace(spec, attention=choice.implementation)


def build_optimizer(config: Config, objective: Objective):
    """AdamW with the factors of every parameter."""
    params = jax.eval_shape(lambda: nn.meta.unbox(states.init_params(objective, jax.random.key(0))))
    factors = optim.multipliers(
        params,
        depth=objective.backbone.spec.depth,
        layer_decay=config.optim.layer_decay,
        patch_embed_lr=config.optim.patch_embed_lr,
    )

    def build(factors: optim.Multipliers):
        return optim.build(config.optim, multipliers=factors)

    if not config.adapter.rank:
        return build(factors)
    spec = zoo.fill(AdapterSpec, config.adapter)
    log.info("adapters: %s of %s parameters train", *_with_commas(num_trained(params, spec)))
    return adapters.wrap(spec, build, multipliers=factors, seed=config.seed)


def _with_commas(numbers) -> list[str]:
    return [f"{number:,}" for number in numbers]

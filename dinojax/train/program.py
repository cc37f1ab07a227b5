"""From a config to a compiled step: the one place where sections become parts."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax.augment.spec import ViewSpec
from dinojax.config import Config, stages, text_rules
from dinojax.eval.features import Embed, EvalTransform, embed, features
from dinojax.eval.network import Network, of_backbone
from dinojax.models import zoo
from dinojax.models.params import init_params
from dinojax.models.vit import Vit
from dinojax.sharding import compiler_options, mesh
from dinojax.sharding.batch import check_groups
from dinojax.sharding.mesh import Layout
from dinojax.train import lora, optim, ramps, text_program
from dinojax.train import state as states
from dinojax.train.lora import AdapterSpec, num_trained
from dinojax.train.networks import Columns, build_objective, open_columns
from dinojax.train.objective import Objective
from dinojax.train.state import State
from dinojax.train.step import META, Forward, Step, abstract_batch
from dinojax.train.teacher import Teacher, open_teacher
from dinojax.train.teacher_forward import TeacherForward

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a config makes on a layout. Use its methods within `mesh.use(program.layout)`."""

    layout: Layout
    step: Step  # of a text stage a TextStep, which is called and compiled alike
    schedules: Callable[[int], dict[str, float]]  # step -> the scalars `now`
    seed: int
    batch_shape: tuple[int, int, int, int]  # B, S, S, C of the global batch
    eval_transform: EvalTransform
    teacher_forward: TeacherForward | None = None  # of distillation: its half of the step
    context: int | None = None  # of a text stage: tokens of a caption
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)  # column -> dtype, of guides

    @property
    def batch_names(self) -> tuple[str, ...]:
        """What the step takes of a batch of the loader."""
        known = tuple(META + name for name in self.metadata)
        return ("images", "sizes", *(("tokens",) if self.context else ()), *known)

    def new_state(self) -> State:
        """The state before the first step, a function of the seed alone."""
        return states.create(self.step.objective, self.step.optimizer, self.layout, self.seed)

    def abstract_state(self) -> State:
        return states.abstract(self.step.objective, self.step.optimizer, self.layout)

    def now(self, step: int) -> dict[str, np.float32]:
        """The schedules' values at a step, as the compiled step takes them."""
        return {name: np.float32(value) for name, value in self.schedules(step).items()}

    def abstract_inputs(self) -> tuple[Any, ...]:
        """(state, batch, now): what the step takes, as shapes and shardings.

        In distillation also, last, what the teacher's forward pass gives.
        """
        images, scalar = self.layout.sharding("image"), self.layout.sharding()
        if self.teacher_forward is not None:
            images = self.teacher_forward.student_sharding(self.layout)
        batch = abstract_batch(self.batch_shape, images, self.context, self.metadata)
        now = {
            name: jax.ShapeDtypeStruct((), jnp.float32, sharding=scalar)
            for name in self.schedules(0)
        }
        inputs = (self.abstract_state(), batch, now)
        if self.teacher_forward is None:
            return inputs
        return *inputs, self.teacher_forward.abstract_teacher_features(self.layout)

    def lower(self):
        """The step traced for this layout, from shapes alone; the state is donated.

        It brings the options that its devices' compiler needs.
        """
        inputs = self.abstract_inputs()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, inputs[0])
        step = jax.jit(
            self.step,
            donate_argnums=0,
            out_shardings=(shardings, self.layout.sharding()),
            compiler_options=compiler_options.options(self.layout.mesh.devices.flat[0]),
        )
        return step.lower(*inputs)

    def features(
        self, params: dict, images_BHWC: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What `embed` compiles; see `features.features`."""
        return features(self.step.objective.backbone, params, images_BHWC)

    def embed(self) -> Embed:
        """The backbone's features of images; see `features.embed`."""
        return embed(self.step.objective.backbone, self.layout)

    def network(self, wrap: Callable[[Callable], Callable]) -> Callable[[dict], Network]:
        """backbone parameters -> what evaluations measure; wrap: put around each forward pass."""
        return of_backbone(self.step.objective.backbone, self.layout, wrap=wrap)


def build(
    config: Config,
    layout: Layout,
    teacher: Teacher | None = None,
    teacher_layout: Layout | None = None,
    columns: Columns | None = None,
) -> Program:
    """Everything but data and files, from a checked config.

    columns: of metadata, for guides; None = read where the config's images are.
    teacher: of a distillation, None = the config's; teacher_layout: its devices, of which `layout`
    has all or a part, None = those of `layout`.
    Raises ValueError if groups do not fit the devices, or a part refuses its section.
    """
    if config.text.enabled:
        return _build_text(config, layout)
    _check_groups(config, layout)
    if config.distill.enabled and teacher is None:
        teacher = open_teacher(config)
    view_spec = ViewSpec.from_sections(
        image=config.image,
        crops=config.crops,
        augment=config.augment,
        masks=config.masks,
        patch_size=config.model.patch_size,
        group_size=config.group_size,
        teacher_patch_size=teacher.networks.backbone.spec.patch_size if teacher else None,
    )
    for note in view_spec.notes(config.data.box_size):
        log.info("%s", note)
    before, schedules = config.start.steps_before, _schedules(config)
    if config.gram.enabled:
        ramps.check_gram_weight(schedules, config.gram.anchor_step)
    columns = open_columns(config) if columns is None else columns
    at_once = _images_at_once(config, layout)
    objective = build_objective(
        config, images_per_step=at_once, teacher=teacher, columns=columns, layout=layout
    )
    schedules = ramps.with_ramps(
        schedules, optim=config.optim, guides=config.guides, num_steps=config.num_steps
    )
    seed = stages.stage_seed(config.seed, before)
    batch_shape = _batch_shape(config)
    teacher_forward = None
    if teacher is not None:
        forward = Forward(objective, view_spec, config.accumulate)
        own = _teacher_layout(config, layout) if teacher_layout is None else teacher_layout
        _check_groups(config, own)
        spread = list(own.mesh.devices.flat) == list(layout.mesh.devices.flat)
        teacher_forward = TeacherForward(teacher, forward, own, batch_shape, seed, is_spread=spread)
    return Program(
        layout=layout,
        step=Step(objective, build_optimizer(config, objective), view_spec, config.accumulate),
        schedules=schedules,
        seed=seed,
        batch_shape=batch_shape,
        teacher_forward=teacher_forward,
        metadata={name: column.values_N.dtype for name, column in columns.items()},
        eval_transform=EvalTransform.from_sections(image=config.image, knn=config.knn),
    )


def _build_text(config: Config, layout: Layout) -> Program:
    """The program of a text stage, which has no teacher and one size of crops."""
    sizes = {"batch_size": config.batch_size, "group_size": config.group_size}
    check_groups(layout, **sizes, accumulate=config.accumulate)
    step = text_program.build_step(
        config,
        images_per_step=_images_at_once(config, layout),
        num_ids=text_program.num_ids(config),
    )
    return Program(
        layout=layout,
        step=cast(Step, step),
        schedules=_schedules(config, names=text_rules.SCHEDULES),
        seed=stages.stage_seed(config.seed, config.start.steps_before),
        batch_shape=_batch_shape(config),
        eval_transform=EvalTransform.from_sections(image=config.image, knn=config.knn),
        context=config.text.context,
    )


def _schedules(config: Config, **names) -> Callable[[int], dict[str, float]]:
    before = config.start.steps_before
    return optim.schedules(
        config.schedules,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        freeze_last_layer=0 if names else config.optim.freeze_last_layer,
        lr_scaling=config.optim.lr_scaling,
        steps_before=before if config.start.schedules == "continue" else 0,
        **names,
    )


def _batch_shape(config: Config) -> tuple[int, int, int, int]:
    return (config.batch_size, *[config.data.box_size] * 2, config.image.channels)


def build_sizes(
    config: Config,
    layout: Layout,
    teacher: Teacher | None = None,
    teacher_layout: Layout | None = None,
    columns: Columns | None = None,
) -> tuple[Program, ...]:
    """A program for every size that the steps of a stage may have, that of the plain keys first."""
    found = stages.sizes(config.crops, config.data.box_size)
    if config.distill.enabled and teacher is None:
        teacher = open_teacher(config)
    columns = open_columns(config) if columns is None else columns
    places = (layout, teacher, teacher_layout, columns)
    if len(found) == 1:
        return (build(config, *places),)
    shares = stages.rates(config.crops.more_rates)
    log.info("%d programs, one per size of crops:", len(found))
    for share, keys in zip(shares, found, strict=True):
        told = ", ".join(f"{key}={value}" for key, value in keys.items())
        log.info("  %.4g %% of the steps: %s", 100 * share, told)
    return tuple(build(config.replaced(keys), *places) for keys in found)


def _teacher_layout(config: Config, layout: Layout) -> Layout:
    """The student's devices, with the teacher's weights where distill.strategy wants them."""
    strategy, devices = config.distill.strategy, list(layout.mesh.devices.flat)
    is_same = strategy in (None, layout.strategy)
    return layout if is_same else mesh.make(strategy, devices, in_order=True)


def _check_groups(config: Config, layout: Layout) -> None:
    batch, group, parts = config.batch_size, config.group_size, config.accumulate
    check_groups(layout, batch_size=batch, group_size=group, accumulate=parts)
    _check_koleo(config, layout)


def _images_at_once(config: Config, layout: Layout) -> int:
    return config.batch_size // layout.num_shards // config.accumulate


def _check_koleo(config: Config, layout: Layout) -> None:
    """Which images share a micro-batch depends on the devices, so groups must not straddle."""
    size, images = config.losses.koleo_group or config.group_size, _images_at_once(config, layout)
    if config.accumulate > 1 and images % size:
        raise ValueError(
            f"losses.koleo_group={size} does not divide the {images} images that one device has in "
            f"one micro-batch (accumulate={config.accumulate}), so neighbours would depend on the "
            "number of devices; use accumulate=1, or a divisor of that number."
        )


def build_optimizer(config: Config, objective: Objective):
    """AdamW with the factors of every parameter."""
    params = jax.eval_shape(lambda: nn.meta.unbox(init_params(objective, jax.random.key(0))))
    # A ConvNeXt learns at one rate: read for others only, so that setting them for it is an error.
    decay, embed = 1.0, 1.0
    if isinstance(objective.backbone, Vit):
        decay, embed = config.optim.layer_decay, config.optim.patch_embed_lr
    factors = optim.multipliers(
        params, depth=objective.backbone.spec.depth, layer_decay=decay, patch_embed_lr=embed
    )

    def build(factors: optim.Multipliers):
        return optim.build(config.optim, multipliers=factors)

    if config.optim.freeze_backbone:
        heads = {name: tree for name, tree in params.items() if name != "backbone"}
        log.info("frozen backbone: %s of %s parameters train", *_with_commas(_sizes(heads, params)))
        return optim.frozen(build, multipliers=factors)
    if not config.adapter.rank:
        return build(factors)
    spec = zoo.fill(AdapterSpec, config.adapter)
    log.info("adapters: %s of %s parameters train", *_with_commas(num_trained(params, spec)))
    return lora.wrap(spec, build, multipliers=factors, seed=config.seed)


def _sizes(*trees) -> list[int]:
    return [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in trees]


def _with_commas(numbers) -> list[str]:
    return [f"{number:,}" for number in numbers]

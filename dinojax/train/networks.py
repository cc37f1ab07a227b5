"""The networks of a config and how they meet their losses: the objective."""

import dataclasses
import logging
from typing import Any

import jax.numpy as jnp
import numpy as np

from dinojax.augment.spec import patch_of_crops
from dinojax.config import Config
from dinojax.data.example import Source
from dinojax.data.metadata import Column, read_columns
from dinojax.data.sources import open_source
from dinojax.models import zoo
from dinojax.models.convnext import ConvNext
from dinojax.models.heads import Head, HeadSpec
from dinojax.models.networks import with_attention
from dinojax.models.vit import Vit, VitSpec, num_kept
from dinojax.sharding.mesh import Layout
from dinojax.train.guidance import Guidance, GuideSpec
from dinojax.train.objective import GramSpec, LossSpec, Objective
from dinojax.train.teacher import Teacher, open_teacher

log = logging.getLogger(__name__)

Columns = dict[str, Column]
SHALLOW = (
    12  # blocks: ViT-S written out took 1.8 times the compile time of its loop (docs/benchmarks.md)
)
ASSUMED = 16  # classes of a column where there are no images to read them from


def build_objective(
    config: Config,
    *,
    images_per_step: int,
    teacher: Teacher | None = None,
    columns: Columns | None = None,
    layout: Layout | None = None,
) -> Objective:
    """Networks and losses. images_per_step: those one device works on at once.

    teacher: of a distillation, None = the config's; columns: of metadata that guides need; layout:
    the devices, None = a network that is only looked at.
    """
    if config.distill.enabled and teacher is None:
        teacher = open_teacher(config)
    backbone = _backbone(config, images_per_step, layout)
    spec = backbone.spec
    dtypes = {"dtype": spec.dtype, "reduce": spec.reduce}
    frozen = None
    if teacher is not None:
        frozen = teacher.networks
        theirs = frozen.backbone.spec
        assert isinstance(theirs, VitSpec)
        crops = ((config.crops.global_size, 2),)
        seen = _with_attention(theirs, config, images_per_step, crops)
        frozen = dataclasses.replace(frozen, backbone=Vit(seen))

    def head(section):
        if frozen is not None and frozen.dino_head is None:
            return _projector(section, spec.width, frozen.backbone.spec.width, **dtypes)
        return Head(zoo.head_spec(section, inputs=spec.width, **dtypes))

    koleo_group = config.losses.koleo_group or config.group_size
    return Objective(
        backbone=backbone,
        dino_head=head(config.dino_head),
        ibot_head=head(config.ibot_head),
        losses=zoo.fill(
            LossSpec, config.losses, koleo_group=koleo_group, others=_others(config.losses)
        ),
        gram=zoo.fill(GramSpec, config.gram) if config.gram.enabled else None,
        group_size=config.group_size,
        frozen=frozen,
        heads_only=config.optim.freeze_backbone,
        guidance=_guidance(config, spec.width, columns or {}),
    )


def _others(section: Config) -> tuple[tuple[str, Any], ...]:
    """Keys of the section `losses` that have no field of their own."""
    fields = {field.name for field in dataclasses.fields(LossSpec)}
    return tuple((n, getattr(section, n)) for n in section.to_dict() if n not in fields)


def open_columns(config: Config, source: Source | None = None) -> Columns:
    """The metadata that the guides of a config need; source: of its images, None = opened here.

    Raises ValueError for what `read_columns` refuses.
    """
    kinds = {
        column: "numbers" if kind == "regression" else "classes"
        for column, kind, _, _ in config.guides.rows
    }
    if not kinds:
        return {}
    if source is None and not config.data.path and not config.data.mixture:
        log.info("no data.path: guides are built for columns of %d classes", ASSUMED)
        return {name: _assumed(name, kind) for name, kind in kinds.items()}
    if source is None:
        source = open_source(config.data, channels=config.image.channels)
    where = f"data.path={config.data.path}"
    return read_columns(source, kinds, table=config.data.metadata, where=where)


def _assumed(name: str, kind: str) -> Column:
    """A column of a plan, which has no images."""
    if kind == "numbers":
        return Column(name, np.array([0.0, 1.0], np.float32), ())
    classes = tuple(str(number) for number in range(ASSUMED))
    return Column(name, np.arange(ASSUMED, dtype=np.int32), classes)


def _guidance(config: Config, width: int, columns: Columns) -> Guidance | None:
    rows, section = config.guides.rows, config.guides
    if not rows:
        return None

    def spec(name: str, kind: str, effect: str, weight: float) -> GuideSpec:
        column = columns[name]
        low, high = (0.0, 1.0) if column.classes else column.range
        return zoo.fill(
            GuideSpec,
            section,
            **dict(name=name, kind=kind, reverse=effect == "remove", weight=weight),
            **dict(outputs=len(column.classes) or 1, low=low, high=high),
        )

    return Guidance(tuple(spec(*row) for row in rows), width, section.equalize)


def _backbone(config: Config, images: int, layout: Layout | None) -> Vit | ConvNext:
    found = zoo.backbone(
        config.model,
        config.rope,
        channels=config.image.channels,
        attention="plain",
        dtype=jnp.dtype(config.precision.compute),
        reduce=jnp.dtype(config.precision.reduce),
    )
    if isinstance(found, ConvNext):
        return found
    crops = (config.crops.global_size, 2), (config.crops.local_size, config.crops.num_local)
    spec = _with_attention(found.spec, config, images, crops)
    unroll = config.model.unroll or _unroll(spec.depth, layout)
    return Vit(dataclasses.replace(spec, unroll=unroll))


def _unroll(depth: int, layout: Layout | None) -> int:
    """All blocks of a shallow network on GPUs, where a loop would copy what is kept of each.

    Gathered weights are given back sooner in a loop, and CPUs and TPUs have other costs.
    """
    if layout is None or not layout.sharding("width").is_fully_replicated:
        return 1
    is_gpu = layout.mesh.devices.flat[0].platform in ("gpu", "cuda", "rocm")
    return depth if is_gpu and depth <= SHALLOW else 1


def _projector(section, inputs: int, outputs: int, **dtypes) -> Head:
    """A head that ends where prototypes would begin, as wide as the teacher's features."""
    layers = {name: getattr(section, name) for name in ("num_layers", "hidden", "bias")}
    return Head(HeadSpec(inputs, bottleneck=outputs, prototypes=0, **dtypes, **layers))


def _with_attention(spec: VitSpec, config: Config, images: int, crops) -> VitSpec:
    """The attention that works on the shapes this run has, with the reasons in the log.

    crops: (size, count) of each kind, as they are cut.
    """
    heads, shapes = (spec.num_heads, spec.head_width), []
    reduction = patch_of_crops(config.crops, config.model.patch_size) // spec.patch_size
    for size, count in crops:
        rows, columns = spec.grid(size // reduction, size // reduction)
        kept = num_kept(count * config.group_size, spec.drop_path) * images // config.group_size
        shapes.append((kept, 1 + spec.num_registers + rows * columns, *heads))
    return with_attention(spec, config.model.attention, shapes)

"""FLOPs and bytes of a step in closed form, by network and crops (docs/planning.md).

2 per multiply-add of matrix products, over all devices. `model` counts what the mathematics asks
for, `hardware` also what remat and blocks of scores compute again; utilisation of either kind is
these over the seconds of a step and the peak of the devices.
"""

import math

import jax
import jax.numpy as jnp

from dinojax.augment.spec import ViewSpec
from dinojax.models.block import VitSpec
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.heads import HeadSpec
from dinojax.models.layers import FFNS, Named, ffn_width
from dinojax.models.params import init_params
from dinojax.models.vit import num_kept
from dinojax.models.zoo import Spec
from dinojax.sharding.axes import device_axes
from dinojax.train.program import Program
from dinojax.train.teacher import prototypes
from dinojax.train.teacher_forward import TeacherForward


def closed_form(built: Program) -> dict[str, dict[str, float]]:
    """{part: {"model", "hardware"}} of one step: parts are networks with their crops, and heads."""
    objective, views = built.step.objective, built.step.view_spec
    spec, images = objective.backbone.spec, built.batch_shape[0]
    teacher = objective.frozen or objective
    seen = views.global_size // views.teacher_reduction
    groups = images // views.group_size
    crops = {
        "global": (views.global_size // views.reduction, 2),
        "local": (views.local_size // views.reduction, views.num_local),
    }
    made, whole = (images * x for x in _crops(views, *built.batch_shape[2:]))
    # The program of a frozen teacher cuts its crops itself.
    parts = {
        "crops": {"model": made, "hardware": made + (built.teacher_forward is not None) * whole}
    }
    parts["teacher global"] = _once(forward(teacher.backbone.spec, seen) * 2 * images)
    if objective.gram is not None and objective.gram.teacher == "frozen":
        size = views.gram_size or views.global_size
        parts["gram teacher"] = _once(forward(spec, size) * 2 * images)
    for name, (size, count) in crops.items():
        sequences, trains = count * views.group_size, not objective.heads_only
        parts[f"student {name}"] = _student(spec, size, sequences, groups, trains=trains)
    masked = views.masks.num_masked * groups
    for name, head, source, rows, student, taught in (
        ("dino", objective.dino_head, teacher.dino_head, images, 2 + views.num_local, 2),
        ("ibot", objective.ibot_head, teacher.ibot_head, masked, 1, 1),
    ):
        own, pairs = head.spec, student * taught
        learned = 3 * rows * student * head_layers(own)
        if source is None:  # features: cosines of projected tokens with those of the teacher
            parts[f"{name} head"] = _once(learned + 3 * 2 * own.bottleneck * rows * pairs)
            continue
        theirs = source.spec
        parts[f"{name} head"] = _once(learned + rows * taught * head_layers(theirs))
        iterations = objective.losses.sinkhorn_iterations
        passes = 2 * iterations if objective.losses.centering == "sinkhorn" else 1
        one, other = (2 * x.bottleneck * x.prototypes * rows for x in (own, theirs))
        cross = 2 * own.prototypes * rows * pairs
        model = one * 3 * student + other * taught + cross
        hardware = one * 4 * student + other * (passes + 2) * taught + 2 * cross
        parts[f"{name} logits"] = {"model": model, "hardware": hardware}
    return parts


def total(parts: dict[str, dict[str, float]], kind: str) -> float:
    """Of all parts; kind: model | hardware."""
    return sum(part[kind] for part in parts.values())


def _crops(views: ViewSpec, box: int, channels: int) -> tuple[float, float]:
    """(all, global ones): two products for each cut, blur and resize of one image's crops."""

    def resized(num: int, before: int, after: int) -> float:
        products = after * before**2 + after**2 * before
        return 2.0 * channels * num * products if before != after else 0.0

    def cut(num: int, side: int) -> float:
        return 2.0 * channels * num * (side * box**2 + side**2 * box)

    base, size, gram = views.base_size, views.global_size, views.gram_size
    local, num_local = views.local_size, views.num_local
    first, second, each = views.blur_rates
    blurred = base if views.gram_distortions else size
    whole = cut(2, base) + channels * 8 * blurred**3 * (first + second > 0)
    whole += resized(2, base, size) + (0.0 if gram is None else resized(2, base, gram))
    # Both programs make both copies, for themselves and to be dropped by their compiler.
    whole += sum(resized(2, size, size // n) for n in {views.reduction, views.teacher_reduction})
    part = cut(num_local, local) + channels * 4 * num_local * local**3 * (each > 0)
    return whole + part + resized(num_local, local, local // views.reduction), whole


def _tokens(spec: VitSpec, size: int) -> tuple[int, int]:
    rows, columns = spec.grid(size, size)
    return rows * columns, 1 + spec.num_registers + rows * columns


def _embed(spec: VitSpec, size: int) -> float:
    return 2 * _tokens(spec, size)[0] * spec.patch_size**2 * spec.channels * spec.width


def _attention(spec: VitSpec, size: int) -> tuple[float, float]:
    """(linear layers, products of tokens with tokens) of one block's attention, one crop."""
    tokens = _tokens(spec, size)[1]
    return 8 * tokens * spec.width**2, 4 * tokens**2 * spec.width


def _ffn(spec: VitSpec, size: int) -> float:
    matrices = 2 if FFNS[spec.ffn] is None else 3
    hidden = ffn_width(spec.ffn, spec.width, spec.ffn_ratio)
    return 2 * matrices * _tokens(spec, size)[1] * spec.width * hidden


def _convolutions(spec: ConvNextSpec, size: int) -> tuple[float, float, float, float]:
    """(stem, other downsampling, depthwise and pointwise layers of all blocks), one crop."""
    found, side = [0.0] * 4, size
    for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
        side //= 2 if stage else 4
        inputs = 2 * 2 * spec.widths[stage - 1] if stage else 4 * 4 * spec.channels
        found[min(stage, 1)] += 2 * side**2 * inputs * width
        found[2] += depth * 2 * side**2 * 7 * 7 * width
        found[3] += depth * 2 * side**2 * 8 * width**2
    stem, downsampling, depthwise, pointwise = found
    return stem, downsampling, depthwise, pointwise


def forward(spec: Spec, size: int) -> float:
    """One forward pass of one crop.

    ViT: depth (8 N D^2 + 4 N^2 D + 2 m N D F) + patch embedding. ConvNeXt: of each stage with S
    entries, depth S (98 D + 16 D^2) + downsampling.
    """
    if isinstance(spec, ConvNextSpec):
        return sum(_convolutions(spec, size))
    return spec.depth * (sum(_attention(spec, size)) + _ffn(spec, size)) + _embed(spec, size)


def activations(spec: Spec, size: int, *, itemsize: int) -> float:
    """Bytes alive at most in the forward pass of one crop, with plain attention.

    ViT: the residual stream, and the larger of queries, keys and values with two arrays of scores
    in float32, and of the hidden values of the MLP and their gate. ConvNeXt: the hidden values of
    its first stage, and what enters and leaves the block.
    """
    if isinstance(spec, ConvNextSpec):
        return itemsize * (size // 4) ** 2 * spec.widths[0] * (4 + 2)
    tokens = _tokens(spec, size)[1]
    hidden = ffn_width(spec.ffn, spec.width, spec.ffn_ratio)
    attention = itemsize * 3 * tokens * spec.width + 2 * 4 * spec.num_heads * tokens**2
    gates = 1 if FFNS[spec.ffn] is None else 2
    return itemsize * tokens * spec.width + max(attention, itemsize * gates * tokens * hidden)


def _student(
    spec: Spec, size: int, sequences: int, groups: int, *, trains: bool
) -> dict[str, float]:
    """Forward and backward of the sequences that each branch keeps, all those of a ConvNeXt.

    Gradients of pixels are not taken, so patch embedding and stem cost two passes. `dots` computes
    products of tokens with tokens and depthwise convolutions again, `products` those that give the
    scores and the convolutions, `full` everything in a block.
    Of a frozen backbone (a ViT) the forward pass alone.
    """
    num = groups * sequences
    if isinstance(spec, ConvNextSpec):
        stem, downsampling, depthwise, pointwise = (num * x for x in _convolutions(spec, size))
        block, again, scores = depthwise + pointwise, depthwise, depthwise
        embed = 1.5 * downsampling + stem
    else:
        linear, pairs = _attention(spec, size)
        kept = groups * num_kept(sequences, spec.drop_path) if spec.drop_path else num
        block = spec.depth * kept * (linear + pairs + _ffn(spec, size))
        again, embed = spec.depth * kept * pairs, _embed(spec, size) * num
        scores = again / 2
    if not trains:
        return _once(block + embed)
    model = 3 * block + 2 * embed
    twice = {"none": 0.0, "products": scores, "dots": again, "full": block}
    return {"model": model, "hardware": model + twice[spec.remat]}


def head_layers(head: HeadSpec) -> float:
    """One forward pass of one token through a head, without prototypes."""
    widths = [head.inputs, *[head.hidden] * (head.num_layers - 1), head.bottleneck]
    return sum(2.0 * a * b for a, b in zip(widths, widths[1:], strict=False))


def _once(flops: float) -> dict[str, float]:
    return {"model": flops, "hardware": flops}


def wire(built: Program, reduce: str | None = None) -> dict[str, float]:
    """{kind: bytes out of a device in one step} for weights and their gradients.

    A weight is gathered in the dtype of computation by the teacher, the student and, in blocks and
    prototypes, the backward pass; its gradient reaches the devices that store parts of it as their
    part. What is whole on every device, and copies of parts, take the sum of all devices. reduce:
    the dtype in which gradients of matrices are summed, None = the program's precision.reduce.
    """
    objective, layout = built.step.objective, built.layout
    boxed = jax.eval_shape(lambda: init_params(objective, jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, Named)  # noqa: E731
    found = {"all-gather": 0.0, "reduce-scatter": 0.0, "all-reduce": 0.0}
    for path, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        over = {axis for name in box.names for axis in device_axes(layout.strategy, name)}
        kept = {"tensor"} & over if "prototypes" in name else set()
        parts, places = (_devices(layout, axes) for axes in (over - kept, over))
        kernel = any(name not in (None, "depth") for name in box.names)  # vectors stay float32
        spec = objective.backbone.spec
        size = box.value.size / (places / parts)
        away = size * (parts - 1) / parts * built.step.accumulate
        summed = 4 if not kernel else jnp.promote_types(spec.dtype, reduce or spec.reduce).itemsize
        taught = built.teacher_forward is not None
        scanned = "depth" in box.names
        passes = _passes(name, objective, scanned=scanned, taught=taught)
        found["all-gather"] += away * passes * (spec.dtype.itemsize if kernel else 4)
        found["reduce-scatter"] += away * summed
        copies = layout.num_shards / places
        one = 2 * size / parts * (1 - 1 / copies) * summed
        found["all-reduce"] += one * built.step.accumulate
    if built.teacher_forward is not None:  # for targets and the loss, forward and backward
        theirs = prototypes(built.teacher_forward.teacher.abstract(layout))
        found["all-gather"] += 3 * _missing(theirs) * built.step.accumulate
    return found


def summed(built: Program) -> dict[str, float]:
    """Bytes out of a device for gradients in one step, for each choice of precision.reduce."""
    spec = built.step.objective.backbone.spec
    choices = {name: wire(built, name) for name in ("float32", str(spec.dtype))}
    kinds = ("reduce-scatter", "all-reduce")
    return {name: sum(sent[kind] for kind in kinds) for name, sent in choices.items()}


def forward_wire(teacher_forward: TeacherForward) -> dict[str, float]:
    """The same of a frozen teacher's forward pass, which needs no prototypes."""
    params = teacher_forward.teacher.abstract(teacher_forward.layout)
    gathered = _missing(params) - _missing(prototypes(params))
    found = {"all-gather": gathered * teacher_forward.forward.accumulate}
    return {**found, "reduce-scatter": 0.0, "all-reduce": 0.0}


def _missing(params) -> float:
    """Bytes of parameters that a device does not store."""
    return sum(
        (leaf.size - math.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(params)
    )


def _devices(layout, axes) -> int:
    return math.prod(layout.mesh.shape[axis] for axis in axes)


def _passes(name: str, objective, *, scanned: bool, taught: bool) -> int:
    """How often a parameter is gathered in a micro-batch.

    scanned: of a block, and gathered again for the backward pass; taught: by another network.
    """
    if "prototypes" in name:
        return 2 if taught else 5  # targets; both networks in the loss, forward and backward
    frozen = objective.gram is not None and objective.gram.teacher == "frozen"
    passes = (3 if scanned else 2) + (frozen and name.startswith("backbone"))
    return passes - taught

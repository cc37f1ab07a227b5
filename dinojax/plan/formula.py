"""FLOPs of a step in closed form, per network and kind of crop. PLANS.md prints the formulas.

2 per multiply-add of matrix products, over all devices. `model` counts what the mathematics asks
for, `hardware` also what remat and blocks of scores compute again; utilisation of either kind is
these over the seconds of a step and the peak of the devices.
"""

from dinojax.models.block import VitSpec
from dinojax.models.heads import HeadSpec
from dinojax.models.layers import FFNS, ffn_width
from dinojax.models.vit import num_kept
from dinojax.program import Program


def closed_form(built: Program) -> dict[str, dict[str, float]]:
    """{part: {"model", "hardware"}} of one step: parts are networks with their crops, and heads."""
    objective, views = built.step.objective, built.step.view_spec
    spec, images = objective.backbone.spec, built.batch_shape[0]
    groups = images // views.group_size
    crops = {"global": (views.global_size, 2), "local": (views.local_size, views.num_local)}
    parts = {"teacher global": _once(forward(spec, views.global_size) * 2 * images)}
    if objective.gram is not None and objective.gram.teacher == "frozen":
        size = views.gram_size or views.global_size
        parts["gram teacher"] = _once(forward(spec, size) * 2 * images)
    for name, (size, count) in crops.items():
        sequences, trains = count * views.group_size, not objective.heads_only
        parts[f"student {name}"] = _student(spec, size, sequences, groups, trains=trains)
    masked = views.masks.num_masked * groups
    for name, head, student, teacher, pairs in (
        ("dino", objective.dino_head.spec, 2 + views.num_local, 2, 2 * (2 + views.num_local)),
        ("ibot", objective.ibot_head.spec, 1, 1, 1),
    ):
        rows = images if name == "dino" else masked
        layers = head_layers(head)
        both = layers * rows * (3 * student + teacher)
        parts[f"{name} head"] = {"model": both, "hardware": both}
        iterations = objective.losses.sinkhorn_iterations
        passes = 2 * iterations if objective.losses.centering == "sinkhorn" else 1
        one = 2 * head.bottleneck * head.prototypes * rows
        cross = 2 * head.prototypes * rows * pairs
        model = one * (3 * student + teacher) + cross
        hardware = one * (4 * student + (passes + 2) * teacher) + 2 * cross
        parts[f"{name} logits"] = {"model": model, "hardware": hardware}
    return parts


def total(parts: dict[str, dict[str, float]], kind: str) -> float:
    """Of all parts; kind: model | hardware."""
    return sum(part[kind] for part in parts.values())


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


def forward(spec: VitSpec, size: int) -> float:
    """One forward pass of one crop: depth (8 N D^2 + 4 N^2 D + 2 m N D F) + patch embedding."""
    return spec.depth * (sum(_attention(spec, size)) + _ffn(spec, size)) + _embed(spec, size)


def _student(
    spec: VitSpec, size: int, sequences: int, groups: int, *, trains: bool
) -> dict[str, float]:
    """Forward and backward of the sequences that each branch keeps; of a frozen one forward alone.

    Gradients of pixels are not taken, so patch embedding costs two passes. `dots` computes the
    products of tokens with tokens again, `full` everything in a block.
    """
    linear, pairs = _attention(spec, size)
    share = groups * num_kept(sequences, spec.drop_path) if spec.drop_path else groups * sequences
    block = spec.depth * share * (linear + pairs + _ffn(spec, size))
    if not trains:
        return _once(block + _embed(spec, size) * groups * sequences)
    again = {"none": 0.0, "dots": spec.depth * share * pairs, "full": block}[spec.remat]
    model = 3 * block + 2 * _embed(spec, size) * groups * sequences
    return {"model": model, "hardware": model + again}


def head_layers(head: HeadSpec) -> float:
    """One forward pass of one token through a head, without prototypes."""
    widths = [head.inputs, *[head.hidden] * (head.num_layers - 1), head.bottleneck]
    return sum(2.0 * a * b for a, b in zip(widths, widths[1:], strict=False))


def _once(flops: float) -> dict[str, float]:
    return {"model": flops, "hardware": flops}

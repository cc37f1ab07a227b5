"""Replays of recorded heads and their losses: DPT, Mask2Former, Plain-DETR."""

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dinojax.eval.depth_bins import depth_of
from dinojax.tasks import boxes, coco_ap, detection_losses, mask_losses, names, released
from dinojax.tasks.adapter import Adapter, AdapterSpec
from dinojax.tasks.deformable import DeformableAttention, sample
from dinojax.tasks.detection_losses import Found
from dinojax.tasks.detr import Detector, DetrSpec, detected
from dinojax.tasks.dpt import Dpt, DptSpec
from dinojax.tasks.mask2former import MaskHead, MaskSpec, Prediction, semantic
from dinojax.tasks.pixel_decoder import PixelSpec
from dinojax.tasks.sines import of_padded
from dinojax.tasks.windows import windowed
from tests.golden.dense import first, last
from tests.golden.record import FLOAT32_RELATIVE, Check, Record, Skip

BINS = {"chmv2_mixlog": "mixlog"}


def wide(x) -> jax.Array:
    x = np.asarray(x)
    return jnp.asarray(x, jnp.float64) if np.issubdtype(x.dtype, np.floating) else jnp.asarray(x)


def variables_of(record: Record, module, *inputs, prefix: str = "w/", **options) -> dict:
    """float64 variables of a module from the recorded weights; every one of them is used."""
    own = [name for name in record.under(prefix) if not name.startswith("backbone.")]
    weights = {name: record[prefix + name] for name in own}
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: module.init(key, *inputs, **options))
    expected = names.expected(shapes)
    assert set(expected) == {n for n in weights if not names.COUNTER.fullmatch(n)}
    assert all(expected[name].shape == weights[name].shape for name in expected)
    return jax.tree.map(wide, names.to_ours(weights, nn.meta.unbox(shapes)))


def applied(module, variables, *inputs, **options):
    """What a module says, and the outputs of its parts; compiled whole."""

    def run(variables, *inputs):
        return module.apply(variables, *inputs, mutable=["intermediates"], **given)

    given = {"capture_intermediates": True, **options}
    return jax.jit(run)(variables, *inputs)


def replay_dpt(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    head, own = config["head"], config["features_to_depth"]
    spec = DptSpec(
        level_widths=tuple(head["post_process_channels"]),
        width=head["channels"],
        hidden=head["n_hidden_channels"],
        outputs=config["n_output_channels"],
        readout=config["use_cls_token"],
        batch_norm=config["use_batchnorm"],
        bias=head.get("use_bias", False),
        project=head.get("projection_after_fusion", True),
    )
    options = {
        "kind": BINS.get(own["bins_strategy"], own["bins_strategy"]),
        "norm": BINS.get(own["norm_strategy"], own["norm_strategy"]),
        "min_depth": own["min_depth"],
        "max_depth": own["max_depth"],
    }
    with jax.enable_x64(True):
        levels = [
            (wide(last(record[f"in/patch{n}"])), wide(record[f"in/cls{n}"])) for n in range(4)
        ]
        module = Dpt(spec)
        variables = variables_of(record, module, levels, train=False)
        logits, seen = applied(module, variables, levels, train=False)
        inner = seen["intermediates"]
        for number, x in enumerate(inner["reassemble_blocks"]["__call__"][0]):
            yield record.check(f"inter64/reassemble{number}", first(x[:1]))
        for number in range(2):
            x = inner[f"fusion_blocks_{number}"]["__call__"][0]
            yield record.check(f"inter64/fusion{number}", first(x[:1]))
        yield record.check("out64/logits", first(logits[:1, ::2, ::2]))
        depth = depth_of(logits, **options)
        yield record.check("out64/depth", depth[:, None, ::2, ::2])
        bound = FLOAT32_RELATIVE * np.max(record["out/depth"])
        yield Check("out/depth", depth[:1, None], record["out/depth"], bound)
        if "out64/depth_trainmode" in record:
            yield from _dpt_in_training(record, module, variables, levels, options)


def _dpt_in_training(record: Record, module, variables, levels, options) -> Iterator[Check]:
    train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    logits, moved = jax.jit(train)(variables, levels)
    depth = depth_of(logits, **options)
    yield record.check("out64/depth_trainmode", depth[:, None, ::2, ::2])
    for name, array in names.from_ours(moved).items():
        if f"out64/running/{name}" in record:
            yield record.check(f"out64/running/{name}", array)


def replay_deformable(record: Record) -> Iterator[Check]:
    sizes = tuple(map(tuple, record["in/shapes"].tolist()))
    config = record.meta["config"]
    with jax.enable_x64(True):
        inputs = [wide(record[f"in/{name}"]) for name in ("value", "locations", "weights")]
        output, pull = jax.vjp(lambda v, *rest: sample(v, sizes, *rest), *inputs)
        yield record.check("out64/output", output)
        pulled = pull(wide(record["in/cotangent"]))
        for name, grad in zip(("value", "locations", "weights"), pulled, strict=True):
            yield record.check(f"grad64/{name}", grad)
        for case in ("ratio1.0_ref2", "ratio0.5_ref2", "ratio1.0_ref4"):
            share = float(case.split("_")[0].removeprefix("ratio"))
            module = DeformableAttention(config["heads"], config["points"], share)
            own = [wide(record[f"{case}/{name}"]) for name in ("query", "ref", "input")]
            inputs = (*own, sizes, wide(record[f"{case}/padding_mask"]))
            variables = variables_of(record, module, *inputs, prefix=f"{case}/w/")
            yield record.check(f"{case}/out64", module.apply(variables, *inputs))


def replay_adapter(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    spec = AdapterSpec(
        width=config["embed_dim"],
        stem=config["conv_inplane"],
        heads=config["deform_heads"],
        points=config["n_points"],
        share=config["deform_ratio"],
        ffn_share=config["cffn_ratio"],
        extra=config["extra_extractors"],
    )
    with jax.enable_x64(True):
        module = Adapter(spec)
        inputs = wide(last(record["in/image"])), [wide(record[f"in/tokens{n}"]) for n in range(4)]
        variables = variables_of(record, module, *inputs, train=False)
        maps, seen = applied(module, variables, *inputs, train=False)
        prior = seen["intermediates"]["spm"]["__call__"][0]
        yield record.check("inter64/spm_c1", first(prior[0][:, ::2, ::2]))
        for number in (2, 3, 4):
            x = prior[number - 1]
            yield record.check(f"inter64/spm_c{number}", x.reshape(1, -1, spec.width))
        yield record.check("out64/1", first(maps[0][:, ::2, ::2]))
        for number in (2, 3, 4):
            yield record.check(f"out64/{number}", first(maps[number - 1]))


def replay_mask2former(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    spec = MaskSpec(
        classes=config["classes"],
        pixel=PixelSpec(
            width=config["hidden"],
            heads=config["pixel_heads"],
            ffn=config["pixel_ffn"],
            depth=config["pixel_layers"],
        ),
        queries=config["queries"],
        heads=config["heads"],
        ffn=config["ffn"],
        depth=config["decoder_layers"],
    )
    with jax.enable_x64(True):
        module = MaskHead(spec)
        maps = [wide(last(record[f"in/feature{number}"])) for number in (1, 2, 3, 4)]
        variables = variables_of(record, module, maps)
        predictions, seen = applied(module, variables, maps)
        pixels, levels = seen["intermediates"]["pixel_decoder"]["__call__"][0]
        yield record.check("inter64/mask_features", first(pixels)[:, ::4])
        for number, x in enumerate(levels):
            yield record.check(f"inter64/multi_scale{number}", first(x))
        final = predictions[-1]
        yield record.check("out64/pred_logits", final.classes_BQK)
        yield record.check("out64/pred_masks", final.masks_BQhw[..., ::2, ::2])
        yield record.check("out64/aux0/pred_masks", predictions[0].masks_BQhw[..., ::2, ::2])
        for number, prediction in enumerate(predictions[:-1]):
            yield record.check(f"out64/aux{number}/pred_logits", prediction.classes_BQK)
            margin = jnp.min(jnp.abs(prediction.masks_BQhw))
            yield record.check(f"out64/aux{number}/mask_sign_margin", margin)
        scores = semantic(final, tuple(config["image"]))
        yield record.check("out64/semantic", first(scores[:, ::4, ::4]))


def replay_detector(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    spec = DetrSpec(
        classes=config["classes"],
        width=config["hidden"],
        heads=config["heads"],
        encoder_ffn=config["ffn"],
        encoder_depth=config["encoder_layers"],
        ffn=config["ffn"],
        depth=config["decoder_layers"],
        one_to_one=config["one2one"],
        one_to_many=config["one2many"],
        bias_hidden=config["rpe_hidden"],
        patch_size=config["patch"],
        smallest=config["proposal_min_size"],
    )
    images = [record[f"in/image{number}"] for number in range(len(config["sizes"]))]
    with jax.enable_x64(True):
        features, hidden = _detector_inputs(record, images, config)
        yield record.check("inter64/features", first(features))
        yield Check("inter64/mask", hidden, record["inter64/mask"], 0)
        positions = of_padded(hidden, spec.width, features.dtype)
        yield record.check("inter64/pos", first(positions))
        module = Detector(spec)
        variables = variables_of(record, module, features, hidden, train=True)
        run = jax.jit(functools.partial(module.apply, variables, train=True))
        detections = run(features, hidden)
        yield from _found_of(record, detections.layers[-1], "out64/", "")
        yield from _found_of(record, detections.many[-1], "out64/", "_one2many")
        yield from _found_of(record, detections.layers[0], "out64/aux0/", "")
        yield from _found_of(record, detections.proposals, "out64/enc/", "")
        run = jax.jit(functools.partial(module.apply, variables, train=False))
        final = run(features, hidden).layers[-1]
        yield record.check("out64/inference_pred_logits", final.classes_BQK)
        yield record.check("out64/inference_pred_boxes", final.boxes_BQ4)
        sizes, originals = (jnp.asarray(record[f"in/{n}"]) for n in ("sizes", "original_sizes"))
        told = detected(final, sizes, originals, count=config["topk"])
        for name, values in zip(("scores", "labels", "boxes"), told, strict=True):
            for number in range(len(images)):
                yield record.check(f"out64/postprocess{number}/{name}", values[number])


def _detector_inputs(record: Record, images: list[np.ndarray], config: dict):
    """(features [B, h, w, C], true [B, h, w] beyond the images)"""
    patch = config["patch"]
    rows, columns = (max(image.shape[axis] for image in images) for axis in (1, 2))
    whole = np.zeros((len(images), rows, columns, 3))
    hidden = np.ones((len(images), rows, columns), bool)
    for number, image in enumerate(images):
        whole[number, : image.shape[1], : image.shape[2]] = last(image)
        hidden[number, : image.shape[1], : image.shape[2]] = False
    kernels = []
    for number in range(2):
        name = f"w/backbone.0.{'_backbone.' if config['windows'] else ''}backbone.convs.{number}"
        kernel = np.transpose(record[f"{name}.weight"], (2, 3, 1, 0))
        kernels.append((wide(kernel), wide(record[f"{name}.bias"])))

    def features_of(images_BHWC):
        maps = [
            jax.lax.conv_general_dilated(
                images_BHWC, k, (patch, patch), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            + b[None, None, None]
            for k, b in kernels
        ]
        return jnp.concatenate([maps[0], jnp.tanh(maps[1])], axis=-1)

    if not config["windows"]:
        return features_of(wide(whole)), jnp.asarray(hidden[:, ::patch, ::patch])
    features = windowed(features_of, wide(whole), windows=config["windows"], patch_size=patch)
    return features, jnp.asarray(hidden[:, ::patch, ::patch])


def _found_of(record: Record, found: Found, prefix: str, mark: str) -> Iterator[Check]:
    names = ("pred_logits", "pred_boxes", "pred_boxes_old", "pred_deltas")
    for name, values in zip(names, found, strict=True):
        yield record.check(f"{prefix}{name}{mark}", values)


def replay_boxes(record: Record) -> Iterator[Check]:
    with jax.enable_x64(True):
        proposals, deltas = wide(record["in/proposals"]), wide(record["in/deltas"])
        size = jnp.concatenate([wide(record["in/max_w"]), wide(record["in/max_h"])], axis=-1)
        clipped = boxes.moved(proposals, deltas, size)
        yield record.check("out64/boxes_clipped", boxes.corners(clipped))
        whole = boxes.moved(proposals, deltas)
        yield record.check("out64/boxes_unclipped", boxes.corners(whole))
        yield record.check("out64/cxcywh", clipped)
        truth = wide(record["in/gt"])
        yield record.check("out64/bbox2delta", boxes.deltas(proposals[0], truth))
        pairs = boxes.deltas(proposals[0][:, None], truth[None, :4])
        yield record.check("out64/bbox2delta_pairwise", pairs)


def replay_average_precision(record: Record) -> Iterator[Check]:
    truth, found = record["in/gt"], record["in/det"]
    classes = np.array(record.meta["config"]["categories"])
    own = coco_ap.Truth(truth[:, 0], truth[:, 1], truth[:, 2:6], truth[:, 6], truth[:, 7] > 0)
    detected = coco_ap.Detected(found[:, 0], found[:, 1], found[:, 2:6], found[:, 6])
    told = coco_ap.average_precision(own, detected, classes)
    yield record.check("out64/stats12", np.array(list(told.summary().values())))
    yield record.check("out64/ap_iou_class_all", told.precision[..., 0].mean(axis=1))
    yield record.check("out64/recall_iou_class_all", told.recall[:, :, 0, 2])


def _padded(record: Record, name: str, fill=0) -> np.ndarray:
    """`in/NAME0`, `in/NAME1` ... as rows of one array."""
    parts = [record[f"in/{name}{number}"] for number in range(2)]
    most = max(len(part) for part in parts)
    pads = [[(0, most - len(part))] + [(0, 0)] * (part.ndim - 1) for part in parts]
    return np.stack(
        [np.pad(p, pad, constant_values=fill) for p, pad in zip(parts, pads, strict=True)]
    )


def replay_detection_losses(record: Record) -> Iterator[Check | Skip]:
    reparam = record.meta["config"]["reparam"]
    fields = ("pred_logits", "pred_boxes") + (("pred_boxes_old", "pred_deltas") if reparam else ())
    prefixes = {"": "", "_0": "aux0_", "_enc": "enc_"}
    with jax.enable_x64(True):
        count = [len(record[f"in/labels{number}"]) for number in range(2)]
        targets = detection_losses.Targets(
            jnp.asarray(_padded(record, "labels"), jnp.int32),
            wide(_padded(record, "boxes")),
            jnp.asarray(count, jnp.int32),
        )

        def of_layer(mark, layer):
            own = detection_losses.binary(targets) if mark == "_enc" else targets
            found = Found(*layer)
            query = detection_losses.match(found, own)
            return detection_losses.losses(found, own, query), query

        def total(layers):
            told = {mark: of_layer(mark, layer) for mark, layer in layers.items()}
            summed = sum(detection_losses.total(parts) for parts, _ in told.values())
            return summed, told

        layers = {
            mark: [wide(record[f"in/{prefix}{field}"]) for field in fields]
            for mark, prefix in prefixes.items()
        }
        (summed, told), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(layers)
        yield record.check("out64/weighted_total", summed)
        for mark, (parts, _) in told.items():
            for ours, theirs in (("classes", "ce"), ("boxes", "bbox"), ("giou", "giou")):
                yield record.check(f"out64/loss_{theirs}{mark}", parts[ours])
            yield Skip(
                f"out64/cardinality_error{mark}", "a number for logs that no training writes"
            )
        yield Skip("out64/class_error", "a number for logs that no training writes")
        for mark in ("", "_enc"):
            for field, grad in zip(fields, grads[mark], strict=True):
                if f"grad64/{prefixes[mark]}{field}" in record:
                    yield record.check(f"grad64/{prefixes[mark]}{field}", grad)
        for number in range(2):
            order = np.argsort(record[f"out/match_target{number}"])
            matched = np.asarray(told[""][1])[number, : count[number]]
            wanted = record[f"out/match_query{number}"][order]
            yield Check(f"out/match_query{number}", matched, wanted, 0)
            targets_by_query = np.argsort(matched)
            yield record.check(f"out/match_target{number}", targets_by_query)
        pairs = boxes.giou(layers[""][1][0][:, None], wide(record["in/boxes0"])[None])
        yield record.check("out64/giou_image0", pairs)


def replay_mask_losses(record: Record) -> Iterator[Check]:
    with jax.enable_x64(True):
        count = [len(record[f"in/labels{number}"]) for number in range(2)]
        targets = mask_losses.Targets(
            jnp.asarray(_padded(record, "labels"), jnp.int32),
            wide(_padded(record, "masks").astype(float)),
            jnp.asarray(count, jnp.int32),
        )

        def of_layer(layer, number):
            prediction = Prediction(*layer)
            draws = [wide(record[f"in/rand{4 * number + n:02d}"]) for n in range(4)]
            cost = jnp.concatenate(draws[:2])
            query = mask_losses.match(prediction, targets, cost)
            pairs = [_by_target(draw, query, count) for draw in draws[2:]]
            points = mask_losses.Points(cost, *pairs)
            return mask_losses.losses(prediction, targets, query, points)

        # The recorded total has 2 for dice, where the file's settings name the released 5.
        weights = {**mask_losses.WEIGHTS, "dice": 2.0}

        def total(layers):
            told = [of_layer(layer, number) for number, layer in enumerate(layers)]
            return sum(mask_losses.total(parts, weights) for parts in told), told

        layers = [
            [wide(record[f"in/{prefix}{field}"]) for field in ("pred_logits", "pred_masks")]
            for prefix in ("", "aux0_")
        ]
        (summed, told), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(layers)
        yield record.check("out64/weighted_total", summed)
        for mark, parts in zip(("", "_0"), told, strict=True):
            for ours, theirs in (("classes", "ce"), ("masks", "mask"), ("dice", "dice")):
                yield record.check(f"out64/loss_{theirs}{mark}", parts[ours])
        for prefix, own in zip(("", "aux0_"), grads, strict=True):
            for field, grad in zip(("pred_logits", "pred_masks"), own, strict=True):
                yield record.check(f"grad64/{prefix}{field}", grad)


def _by_target(draws_N: jax.Array, query_BT: jax.Array, count: list[int]) -> jax.Array:
    """Draws of pairs, image after image in the order of their queries, at their targets [B, T]."""
    found = jnp.zeros((*query_BT.shape, *draws_N.shape[1:]))
    start = 0
    for image, number in enumerate(count):
        order = jnp.argsort(query_BT[image, :number])
        found = found.at[image, order].set(draws_N[start : start + number])
        start += number
    return found


def replay_released(record: Record) -> Iterator[Check | Skip]:
    """Names and shapes of released heads, all of them and no other."""
    for head, told in record["heads"].items():
        if head not in released.HEADS:
            yield Skip(head, "no head of tasks/; weights/dinotxt.py has its names")
            continue
        ours = {n: t.shape for n, t in released.released_names(released.shapes(head)).items()}
        recorded = _written_out(told["names"])
        yield Check(f"{head}/tensors", len(ours), told["tensors"], 0)
        yield Check(
            f"{head}/elements", sum(map(math.prod, ours.values())), told["total_elements"], 0
        )
        for name, shape in recorded.items():
            yield Check(f"{head}/{name}", ours.get(name, (-1,)), shape, 0)


def _written_out(rows) -> dict[str, tuple[int, ...]]:
    """{name: shape} of rows (name with {i} for indices, shape, dtype, count, indices)."""
    found = {}
    for pattern, shape, _, count, indices in rows:
        listed = [index for index in indices if index != "..."]
        if len(listed) < count:  # only the ends are recorded: all between them
            ends = zip(listed[0], listed[-1], strict=True)
            listed = list(itertools.product(*(range(low, high + 1) for low, high in ends)))
        assert len(listed) == count
        for index in listed:
            name = pattern
            for number in index:
                name = name.replace("{i}", str(number), 1)
            found[name] = tuple(shape)
    return found


# File name -> (marker in the content, replay); see tests/replay_golden.py.
KINDS = {
    r"head_(dpt|canopy).*\.npz": (r"inter64/reassemble0", replay_dpt),
    r"head_msdeform.*\.npz": (r"ratio0.5_ref2/out64", replay_deformable),
    r"head_vit_adapter.*\.npz": (r"inter64/spm_c1", replay_adapter),
    r"head_mask2former.*\.npz": (r"inter64/multi_scale0", replay_mask2former),
    r"head_plain_detr.*\.npz": (r"out64/enc/pred_deltas", replay_detector),
    r"detection_boxes.*\.npz": (r"out64/bbox2delta_pairwise", replay_boxes),
    r"detection_coco_ap.*\.npz": (r"out64/ap_iou_class_all", replay_average_precision),
    r"detection_losses.*\.npz": (r"out64/giou_image0", replay_detection_losses),
    r"mask2former_losses.*\.npz": (r"grad64/aux0_pred_masks", replay_mask_losses),
    r"(released_heads|name_shapes_released).*\.json": (r"heads", replay_released),
}

"""Replays of recorded segmentation and depth: transforms, schedules, heads, losses, metrics."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval import (
    adamw,
    canopy,
    dense_pixels,
    dense_schedules,
    depth_losses,
    depth_metrics,
    depth_transforms,
    linear_head,
    patch_maps,
    segmentation_losses,
    segmentation_metrics,
    segmentation_transforms,
    sliding,
)
from dinojax.eval.depth_bins import bins, depth_of
from dinojax.ops.interpolate import resize
from dinojax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from tests.golden.record import FLOAT32_RELATIVE, Check, Record, Skip, at_both_precisions

STATISTICS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def last(maps: np.ndarray) -> np.ndarray:
    """NCHW (or CHW) to NHWC (or HWC)."""
    return np.moveaxis(maps, -3, -1)


def first(maps) -> np.ndarray:
    return np.moveaxis(np.asarray(maps), -1, -3)


def with_nan(record: Record, name: str, ours: np.ndarray) -> Iterator[Check]:
    """A quantity with NaNs: they must stand at the same places, and the rest agree."""
    recorded = record[name]
    yield Check(f"{name} is NaN", np.isnan(ours), np.isnan(recorded), 0.0)
    bound = record.bound(np.nan_to_num(recorded))
    yield Check(name, np.nan_to_num(ours), np.nan_to_num(recorded), bound)


def replay_miou(record: Record) -> Iterator[Check]:
    num_classes = record.meta["config"]["num_classes"]
    truths = [record[f"in/{name}"] for name in record.under("in/") if name.startswith("gt")]
    predictions = [record[f"in/pred{number}"] for number in range(len(truths))]
    names = {"miou": "mIoU", "accuracy": "aAcc", "recall": "recall"}
    names |= {name: name for name in ("dice", "fscore", "precision")}
    for case, mark in (("plain", ""), ("reduce_zero", "_reduce_zero")):
        total = np.zeros((num_classes, num_classes), np.int64)
        for number, (truth, predicted) in enumerate(zip(truths, predictions, strict=True)):
            truth = segmentation_metrics.reduce_zero(truth) if mark else truth
            counts = segmentation_metrics.confusion(predicted, truth, num_classes)
            ours = np.stack(list(segmentation_metrics.areas(counts).values()))
            yield record.check(f"out/areas{mark}{number}", ours)
            total += counts
        metrics = segmentation_metrics.segmentation_metrics(total)
        for ours, theirs in names.items():
            yield record.check(f"out/{case}/{theirs}", np.float64(metrics[ours]))
        yield record.check(f"out/{case}/acc", np.float64(metrics["recall"]))


def replay_seg_losses(record: Record) -> Iterator[Check]:
    with jax.enable_x64(True):
        logits, labels = jnp.asarray(last(record["in/pred"])), jnp.asarray(record["in/label"])
        loss = segmentation_losses.cross_entropy(logits, labels)
        yield record.check("out64/ce_mean_all", loss)
        yield record.check("out64/ce_weight2", 2 * loss)
        valid = segmentation_losses.cross_entropy(logits, labels, over_valid=True)
        yield record.check("out64/ce_avg_non_ignore", valid)


def replay_head_train(record: Record) -> Iterator[Check]:
    """The recorded steps of training, in float32 and float64, from one head of a bank."""
    config = record.meta["config"]
    cycle = dense_schedules.OneCycle(
        config["lr"],
        config["T"],
        config["warmup"],
        config["warmup_ratio"],
        beta1=config["betas"][0],
    )
    steps = range(len(record["in/feat0"]))
    yield record.check("sched/lr", np.array([cycle.rate(step) for step in steps]))
    for dtype, mark in ((np.float32, "out/"), (np.float64, "out64/")):
        with jax.enable_x64(dtype is np.float64):
            for name, ours in _trained(record, cycle, dtype).items():
                check = record.check(f"{mark}{name}", ours)
                if name == "loss" and dtype is np.float32:  # stored wider than it was computed
                    check = check._replace(bound=FLOAT32_RELATIVE * np.max(check.recorded))
                yield check


def _trained(record: Record, cycle, dtype) -> dict[str, np.ndarray]:
    weights = {name: jnp.asarray(record[f"w/{name}"], dtype) for name in record.under("w/")}
    params = {
        "scale": weights["batchnorm_layer.weight"],
        "bias": weights["batchnorm_layer.bias"],
        "kernel": weights["conv.weight"][:, :, 0, 0].T,
        "offset": weights["conv.bias"],
    }
    bank = linear_head.bank_of(
        jax.tree.map(lambda x: x[None], params),
        weights["batchnorm_layer.running_mean"],
        weights["batchnorm_layer.running_var"],
    )
    features = jnp.asarray(last(record["in/feat0"]), dtype)
    labels = jnp.asarray(record["in/labels"])

    def at_labels(logits):
        return resize(logits, labels.shape[2:], method="bilinear", antialias=False)

    def step(bank, features, labels, settings):
        def loss_of(logits):
            return segmentation_losses.cross_entropy(at_labels(logits), labels)

        return linear_head.update(bank, features, loss_of, settings)

    step, losses = jax.jit(step), []
    start = linear_head.evaluated(bank, features[0])[0]
    normal = linear_head.batch_normal(features[0])[0]
    trained = {
        "eval_logits_step0": first(start),
        "predict_step0": first(at_labels(start)),
        "train_logits_step0": first(linear_head.head_logits(params, normal)),
    }
    for number in range(len(features)):
        values = (
            cycle.rate(number),
            record.meta["config"]["weight_decay"],
            cycle.momentum(number),
        )
        settings = adamw.Settings(*(jnp.asarray([value], dtype) for value in values))
        bank, losses_J = step(bank, features[number], labels[number], settings)
        losses.append(float(losses_J[0]))
    final = jax.tree.map(lambda x: np.asarray(x[0]), bank.params)
    return trained | {
        "loss": np.array(losses),
        "final/batchnorm_layer.weight": final["scale"],
        "final/batchnorm_layer.bias": final["bias"],
        "final/batchnorm_layer.running_mean": np.asarray(bank.mean_D),
        "final/batchnorm_layer.running_var": np.asarray(bank.var_D),
        "final/batchnorm_layer.num_batches_tracked": np.asarray(bank.moments.step[0]),
        "final/conv.weight": final["kernel"].T[:, :, None, None],
        "final/conv.bias": final["offset"],
        "eval_logits_final": first(linear_head.evaluated(bank, features[0])[0]),
    }


def replay_slide(record: Record) -> Iterator[Check]:
    weights, offset = record["w/W"], record["w/b"]

    def logits_of(x_BHWC):
        b, h, w, c = x_BHWC.shape
        cells = x_BHWC[:, : h // 4 * 4, : w // 4 * 4].reshape(b, h // 4, 4, w // 4, 4, c)
        small = np.maximum(cells.mean(axis=(2, 4)) @ weights.T + offset, 0)
        return np.asarray(resize(jnp.asarray(small), (h, w), method="bilinear", antialias=False))

    with jax.enable_x64(True):
        for number, case in enumerate(record.meta["config"]["cases"]):
            sizes = {"crop": case["crop"], "stride": case["stride"]}
            places = sliding.windows(case["H"], case["W"], **sizes)
            yield record.check(f"out64/windows{number}", np.array(places))
            image = last(record[f"in/x{number}"])[0]
            logits = sliding.slide(logits_of, image, **sizes, batch_size=3)
            yield record.check(f"out64/logits{number}", first(logits)[None])
            shown = sliding.probabilities(logits, tuple(case["rescale"]), flipped=case["flip"])
            yield record.check(f"out64/softmax_resized{number}", first(shown)[None])


def replay_dense_schedules(record: Record) -> Iterator[Check | Skip]:
    for case, config in record.meta["config"].items():
        kwargs = {"lr": config["lr"], "num_steps": config["T"], "warmup": config["warmup_iters"]}
        if case == "multistep":
            schedule = dense_schedules.MultiStep(
                **kwargs, milestones=config["milestones"], gamma=config["gamma"]
            )
            yield Skip(f"{case}/beta1", "this schedule leaves beta1 alone")
        else:
            schedule = dense_schedules.OneCycle(
                **kwargs,
                warmup_ratio=config.get("warmup_ratio", 0.0),
                final_divisor=float(config.get("final_div_factor", 1000.0)),
                anneal=config.get("anneal_strategy", "cos"),
                beta1=None if config.get("use_beta1", True) else 0.9,
            )
            betas = [schedule.momentum(int(step)) for step in record[f"{case}/step"]]
            yield record.check(f"{case}/beta1", np.array(betas))
        rates = [schedule.rate(int(step)) for step in record[f"{case}/step"]]
        # Rates span six orders of magnitude: each has its own bound.
        bound = 1e-12 * np.maximum(np.abs(record[f"{case}/lr"]), 1e-15)
        yield Check(f"{case}/lr", np.array(rates), record[f"{case}/lr"], bound)


class Draws:
    """Recorded draws, in order, behind the methods of a numpy Generator that transforms use."""

    def __init__(self, values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)

    def integers(self, high):
        value = int(self.values.pop(0))
        assert 0 <= value < high
        return value

    def uniform(self, low, high):
        value = self.values.pop(0)
        assert low <= value <= high
        return value


def replay_dense_transforms(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    for number in range(4):
        own, prefix = config[f"eval{number}"], f"eval{number}"
        image, labels = record[f"in/{prefix}/image"], record[f"in/{prefix}/label"]
        if isinstance(own["img_size"], list):
            size = tuple(own["img_size"])
            shown = [dense_pixels.normalized(dense_pixels.resized(image, size), **STATISTICS)]
        else:
            tta = {"ratios": own["tta_ratios"], "flip": True} if own.get("use_tta") else {}
            shown = segmentation_transforms.views(image, own["img_size"], **STATISTICS, **tta)
            size = shown[0].shape[:2]
        for view, ours in enumerate(shown):
            yield record.check(f"out/{prefix}/tensor{view}", first(ours))
        if own["inference_mode"] == "whole" or isinstance(own["img_size"], list):
            labels = dense_pixels.nearest(labels, size)
        yield record.check(f"out/{prefix}/label", labels[None])
    own = Preprocessing(None, None, "fixed", IMAGENET_MEAN, IMAGENET_STD)
    normalize = patch_maps.normalizer(own)
    for number in range(3):
        transform = segmentation_transforms.TrainTransform(
            size=24, crop=24, normalize=normalize, zero_is_unlabelled=True
        )
        draws = Draws(record[f"in/train{number}/numpy_draws"])
        image, labels = transform(
            record[f"in/train{number}/image"], record[f"in/train{number}/label"], draws
        )
        yield Check(f"draws left of train{number}", len(draws.values), 0, 0)
        yield record.check(f"out/train{number}/tensor", first(image))
        yield record.check(f"out/train{number}/label", labels[None])
    yield from _depth_transforms(record)


def _depth_transforms(record: Record) -> Iterator[Check]:
    for number in range(2):
        own, prefix = record.meta["config"][f"depth{number}"], f"depth{number}"
        size = tuple(own["img_size"]) if "img_size" in own else None
        view = depth_transforms.depth_view(record[f"in/{prefix}/image"], **STATISTICS, size=size)
        depth = record[f"in/{prefix}/depth_raw"] / np.float32(own["normalization_constant"])
        yield record.check(f"out/{prefix}/tensor0", first(view))
        yield record.check(f"out/{prefix}/label0", depth[None])
        if own.get("tta"):
            yield record.check(f"out/{prefix}/tensor1", first(view[:, ::-1]))
            yield record.check(f"out/{prefix}/label1", depth[None, :, ::-1])
    draws = Draws(record["in/coloraug_draws"][1:])  # the first decides that colours change
    image = depth_transforms.coloured(
        last(record["in/coloraug_image"]), draws, brightness=(0.9, 1.1)
    )
    # The reference's powers are float32, its colours float64.
    bound = 2e-6 * np.max(record["out/coloraug"])
    yield Check("out/coloraug", first(image), record["out/coloraug"], bound)
    pair = record["in/flip_pair"][:, 0]
    mean = depth_transforms.mean_of_flips(pair[:1], pair[1:])
    yield record.check("out/flip_inverse", mean[:, None])


def replay_depth_bins(record: Record) -> Iterator[Check]:
    names = {"chmv2_mixlog": "mixlog"}
    for kind, norm, least, greatest in record.meta["config"]["cases"]:
        options = {"kind": names.get(kind, kind), "norm": names.get(norm, norm)}
        options |= {"min_depth": least, "max_depth": greatest}

        def depth(logits, options=options):
            return {"out": depth_of(last(logits), **options)[:, None]}

        name = f"{kind}_{norm}_{greatest:g}"
        yield from at_both_precisions(record, name, depth, record["in/logits"])
    with jax.enable_x64(True):
        num = record.meta["config"]["n_bins"]
        yield record.check("out64/mixlog_bins", bins("mixlog", num, 0.001, 96.0))
        least, greatest = record.meta["config"]["range_regression"]
        one = last(record["in/logits"])[..., :1]
        options = {"kind": "linear", "norm": "linear"}
        ours = depth_of(one, **options, min_depth=least, max_depth=greatest)
        yield record.check("out64/regression", ours[:, None])
        yield from _depth_heads(record)
        yield from _paddings(record)


def _depth_heads(record: Record) -> Iterator[Check]:
    levels = [
        (jnp.asarray(last(record[f"in/patch{n}"]), float), jnp.asarray(record[f"in/cls{n}"], float))
        for n in range(2)
    ]
    for cls in (False, True):
        prefix = f"w/cls{int(cls)}"
        weights = {
            n: jnp.asarray(record[f"{prefix}/{n}"], float) for n in record.under(f"{prefix}/")
        }
        features = linear_head.joined(levels, cls=cls)
        params = {
            "scale": weights["batchnorm_layer.weight"],
            "bias": weights["batchnorm_layer.bias"],
            "kernel": weights["conv_depth.weight"][:, :, 0, 0].T,
            "offset": weights["conv_depth.bias"],
        }
        bank = linear_head.bank_of(
            jax.tree.map(lambda x: x[None], params),
            weights["batchnorm_layer.running_mean"],
            weights["batchnorm_layer.running_var"],
        )
        evaluated = first(linear_head.evaluated(bank, features)[0])
        yield record.check(f"out64/head_cls{int(cls)}_eval", evaluated)
        normal = linear_head.batch_normal(features)[0]
        trained = first(linear_head.head_logits(params, normal))
        yield record.check(f"out64/head_cls{int(cls)}_train", trained)


def _paddings(record: Record) -> Iterator[Check]:
    for name in record.under("in/pad_"):
        multiple = int(name.split("_")[1])
        images = last(record[f"in/pad_{name}"])
        padded = dense_pixels.pad_to_multiple(images, multiple)
        yield record.check(f"out64/center_pad_{name}", first(padded))
        size = tuple(side + -side % multiple for side in images.shape[1:3])
        stretched = resize(jnp.asarray(images), size, method="bilinear", antialias=False)
        yield record.check(f"out64/stretch_{name}", first(stretched))


def replay_depth_losses(record: Record) -> Iterator[Check]:
    truth, depth, valid = (record[f"in/{name}"][:, 0] for name in ("gt", "pred", "valid"))
    warm = record.meta["config"]["warm_iter"]
    with jax.enable_x64(True):
        maps = tuple(jnp.asarray(x) for x in (depth, truth, valid))
        sig = jax.value_and_grad(depth_losses.sig_loss)
        (first_loss, first_grad), (later_loss, later_grad) = (
            sig(*maps, with_variance=with_variance) for with_variance in (False, True)
        )
        calls = [first_loss if call < warm else later_loss for call in range(5)]
        yield record.check("out64/sigloss_sequence", np.array(calls))
        yield record.check("out64/sigloss_grad_warm", first_grad[:, None])
        yield record.check("out64/sigloss_grad_after", later_grad[:, None])
        yield record.check("out64/gradient_loss", depth_losses.gradient_loss(*maps))
        log = depth_losses.gradient_loss(*maps, log=True)
        yield record.check("out64/gradient_log_loss", log)
        yield record.check("out64/gradient_loss_nomask", depth_losses.gradient_loss(*maps[:2]))
        yield record.check("out64/l1", depth_losses.l1_loss(*maps))
    rows = [
        list(depth_metrics.depth_metrics(*images).values())
        for images in zip(depth, truth, valid, strict=True)
    ]
    yield from with_nan(record, "out64/metrics_per_image", np.array(rows))
    yield from _depth_evaluation(record, depth, truth)


def _depth_evaluation(record: Record, depth, truth) -> Iterator[Check]:
    least, greatest = record.meta["config"]["eval_range"]
    mask = depth_metrics.eigen_mask(*truth.shape[1:])
    seen = depth_metrics.valid_depth(truth, least, greatest) & mask
    yield Check("out/nyu_mask_24x30", seen[:2, None], record["out/nyu_mask_24x30"], 0)
    rows = [
        list(depth_metrics.depth_metrics(np.clip(d, least, greatest), t, s).values())
        for d, t, s in zip(depth[:2], truth[:2], seen[:2], strict=True)
    ]
    yield record.check("out/metrics_range_mask", np.array(rows))
    places = np.argwhere(depth_metrics.eigen_mask(480, 640))
    ends = np.stack([places.min(axis=0), places.max(axis=0) + 1], axis=1).ravel()
    yield record.check("out/nyu_mask_480x640_bounds", ends)
    aligned, fit = depth_metrics.align(depth[:2], truth[:2], seen[:2])
    # The reference fits in float32.
    scale = np.max(np.abs(record["out/aligned"]))
    yield Check("out/align_scale_shift", fit, record["out/align_scale_shift"], 1e-4)
    yield Check("out/aligned", aligned[:, None], record["out/aligned"], 2e-5 * scale)


def replay_canopy(record: Record) -> Iterator[Check]:
    truth, predicted = (record[f"in/{name}_x4"][:, 0] / 4.0 for name in ("chm", "pred"))
    config = record.meta["config"]
    metrics = canopy.canopy_metrics(
        predicted, truth, border=config["border"], block=config["block"]
    )
    for theirs, ours in (("mae", "mae"), ("r2_pixel", "r2"), ("r2_block", "block_r2")):
        yield record.check(f"out/{theirs}", np.float64(metrics[ours]))
    for theirs, maps in (("gt", np.maximum(truth, 0)), ("pred", predicted)):
        blocks = canopy.block_means(maps, border=config["border"], block=config["block"])
        yield record.check(f"out/block_{theirs}", blocks[:, None])


# File name -> (marker in the content, replay); see tests/replay_golden.py.
KINDS = {
    r"seg_miou.*\.npz": (r"out/areas_reduce_zero0", replay_miou),
    r"seg_losses.*\.npz": (r"out64/ce_mean_all", replay_seg_losses),
    r"seg_linear_head_train.*\.npz": (r"out64/train_logits_step0", replay_head_train),
    r"seg_slide.*\.npz": (r"out64/softmax_resized0", replay_slide),
    r"dense_schedules.*\.npz": (r"seg_ade_config/lr", replay_dense_schedules),
    r"dense_transforms.*\.npz": (r"out/coloraug", replay_dense_transforms),
    r"depth_head_bins.*\.npz": (r"out64/mixlog_bins", replay_depth_bins),
    r"depth_losses_metrics.*\.npz": (r"out64/sigloss_sequence", replay_depth_losses),
    r"canopy_metrics.*\.npz": (r"out/block_gt", replay_canopy),
}

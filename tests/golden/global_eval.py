"""Replays of recorded evaluations by one feature per image: metrics, k-NN, probes, retrieval."""

import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval import (
    classification,
    few_shot_ridge,
    heads,
    imagenet_c,
    logistic,
    met,
    multi_scale,
    neighbors,
    retrieval,
    subsets,
)
from dinojax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from tests.golden.record import Check, Record, Skip

FLOAT32_SUMS = 1e-6  # of shares that the reference summed in float32
PRECISIONS = (("", np.float32), ("64", np.float64))


def of_labels(name: str, scores, target, k: int):
    """What `name` of the recorded metrics is of scores and int labels."""
    return {
        "mean_accuracy": classification.accuracy,
        "mean_recall": classification.accuracy,
        "mean_per_class_accuracy": classification.mean_class_accuracy,
        "mean_per_class_recall": classification.mean_class_accuracy,
        "per_class_accuracy": lambda *x: np.nan_to_num(classification.class_accuracies(*x)),
        "auroc": lambda s, t, k: classification.auroc(s, t),
        "mean_multiclass_f1": classification.accuracy,  # what the micro average of F1 comes to
        "mean_per_class_multiclass_f1": lambda s, t, k: classification.f1(s, t),
        "macro_averaged_mean_reciprocal_rank": lambda s, t, k: classification.mean_reciprocal_rank(
            s, t
        ),
    }[name](scores, target, k)


def of_targets(name: str, scores, targets):
    """What `name` of the recorded metrics is of scores and 0/1 targets."""
    mean = classification.mean_over_classes
    voc = classification.voc_average_precision
    return {
        "map_voc2007": lambda: mean(voc, scores, targets),
        "mean_multilabel_f1": lambda: classification.multilabel_f1(scores, targets, mean="all"),
        "mean_per_class_multilabel_f1": lambda: classification.multilabel_f1(scores, targets),
        "macro_multilabel_average_precision": lambda: mean(
            classification.average_precision, scores, targets
        ),
    }[name]()


def replay_metrics(record: Record) -> Iterator[Check | Skip]:
    scores, target = record["in/preds"].astype(np.float64), record["in/target"]
    labels = record["in/anymatch_target"]
    multi = record["in/multilabel_scores"].astype(np.float64), record["in/multilabel_target"]
    for name in record.under("out/"):
        kind, _, which = name.partition("/")
        if name == "map_voc2007/per_class_ap11":
            columns = zip(*(x.T for x in multi), strict=True)
            ours = [classification.voc_average_precision(*column) for column in columns]
            yield Check(f"out/{name}", ours, record[f"out/{name}"], FLOAT32_SUMS)
        elif kind == "map_voc2007_no_positive_class1":
            without = multi[1].copy()
            without[:, 1] = 0
            ours = of_targets("map_voc2007", multi[0], without)
            yield Check(f"out/{name}", ours, record[f"out/{name}"], FLOAT32_SUMS)
        elif "multilabel" in kind or kind == "map_voc2007":
            yield Check(
                f"out/{name}", of_targets(kind, *multi), record[f"out/{name}"], FLOAT32_SUMS
            )
        else:
            k = int(which.removeprefix("top-"))
            yield from _with_ties(record, name, scores, labels if "any" in kind else target, k)


def _with_ties(record: Record, name: str, scores, target, k: int) -> Iterator[Check]:
    """torch's top-k takes equal scores in no order, so the recorded number has room for both."""
    metric = functools.partial(of_labels, name.split("/")[0])
    if target.ndim == 2:
        metric = classification.any_match
    ours = [np.asarray(metric(scores, target, k))] * 2
    if k > 1:  # the right classes before, and behind, all that score the same
        own = np.zeros(scores.shape)
        for column in np.atleast_2d(target.T):
            own[np.arange(len(own)), column] += (column >= 0) * 1e-9
        ours = [np.asarray(metric(scores + sign * own, target, k)) for sign in (-1, 1)]
    middle, room = (ours[0] + ours[1]) / 2, np.abs(ours[1] - ours[0]) / 2
    yield Check(f"out/{name}", middle, record[f"out/{name}"], room + FLOAT32_SUMS)


def replay_imagenet_c(record: Record) -> Iterator[Check | Skip]:
    names, config = record.meta["config"]["corruption_types"], record.meta["config"]
    cells = [(name, level) for name in names for level in imagenet_c.LEVELS]
    target, kind, level = record["in/target_label_type_level"].T
    right = classification.hits(record["in/preds"], target)
    index = kind * len(imagenet_c.LEVELS) + level - 1
    total = np.bincount(index, minlength=len(cells))
    yield Check("in/total", total, record["in/total"], 0)
    yield Check("in/tp", np.bincount(index, right, minlength=len(cells)), record["in/tp"], 0)
    given = zip(cells, record["in/tp"].astype(np.float64), record["in/total"], strict=True)
    accuracies = {cell: tp / total for cell, tp, total in given if total}
    ours = imagenet_c.mean_corruption_error(accuracies)
    yield Check("out/mce_15", ours, record["out/mce_15"], FLOAT32_SUMS)
    if not config["extras_present"]:
        yield Skip("out/mce_reference_all", "the reference's mean over 19 types is NaN without 4")
        return
    ours = imagenet_c.mean_corruption_error(accuracies, extra=True)
    yield Check("out/mce_reference_all", ours, record["out/mce_reference_all"], FLOAT32_SUMS)


def replay_knn(record: Record) -> Iterator[Check | Skip]:
    classes = record.meta["config"]["classes"]
    for mark, dtype in PRECISIONS:
        train, test = (record[f"in/{name}"].astype(dtype) for name in ("train", "test"))
        bound = 1e-12 if mark else 2e-6
        with jax.enable_x64(bool(mark)):
            yield from _knn_of(record, f"out{mark}", train, test, bound, classes)


def _knn_of(record: Record, prefix: str, train, test, bound, classes) -> Iterator[Check]:
    cases: dict[str, list[int]] = {}
    for name in record.under(f"{prefix}/"):
        if "/k" in name:
            case, k = name.rsplit("/k", 1)
            cases.setdefault(case, []).append(int(k))
    for case, ks in cases.items():
        skip = case.startswith("skip_first")
        queries = train[:30] if skip else test
        own = np.arange(30) if skip else None
        found = neighbors.nearest(train, queries, max(ks), excluded_M=own, normalize=False)
        labels = record["in/multihot" if case.endswith("multihot") else "in/labels"]
        temperature = 0.07 if skip else float(case.split("/")[0].removeprefix("T"))
        ours = neighbors.scores(*found, labels, ks=ks, temperature=temperature, num_classes=classes)
        for k in ks:
            name = f"{prefix}/{case}/k{k}"
            yield Check(name, ours[k], record[name], bound)
    if "out64/topk_sims_150" in record and prefix == "out64":
        ours, _ = neighbors.nearest(train, test, 150, normalize=False)
        yield Check("out64/topk_sims_150", ours, record["out64/topk_sims_150"], bound)


def replay_probe(record: Record) -> Iterator[Check | Skip]:
    """The released linear probe: 20 steps of all heads from the recorded weights."""
    for mark, dtype in PRECISIONS:
        with jax.enable_x64(bool(mark)):
            yield from _probe_of(record, mark, dtype)
    lrs = record["sched/lr"]
    training = heads.Training(num_steps=len(lrs))
    shares = [float(heads.share_of_lr(step, training)) for step in range(len(lrs) + 1)]
    yield Check("sched/lr", np.outer(shares[:-1], lrs[0]), lrs, 1e-8)
    last = record["out64/lr_after_last_step"]
    yield Check("out64/lr_after_last_step", shares[-1] * lrs[0], last, 1e-8)


def _probe_of(record: Record, mark: str, dtype) -> Iterator[Check]:
    config = record.meta["config"]
    keys, lrs = config["head_keys"], record["sched/lr"][0]
    blocks = [int(key.split("_")[1]) for key in keys]
    grid = tuple(heads.Head(str(n), float(lr)) for n, lr in zip(blocks, lrs, strict=True))
    sigmoid = config["loss"] == "binary_cross_entropy"
    training = heads.Training(
        num_steps=len(record["sched/lr"]),
        optimizer=config["optimizer"],
        loss="sigmoid" if sigmoid else "softmax",
    )

    def weights(kind, prefix="w"):
        return [
            jnp.asarray(record[f"{prefix}/classifiers_dict.{key}.linear.{kind}"].T, dtype)
            for key in keys
        ]

    given = {"kernel": weights("weight"), "bias": weights("bias")}
    params = {
        name: {part: jnp.stack([values[n] for n in numbers]) for part, values in given.items()}
        for name, numbers in heads.grouped(grid).items()
    }
    state = heads.start(params, training)
    step = jax.jit(functools.partial(heads.update, heads=grid, training=training))
    losses = []
    inputs = zip(record["in/cls"], record["in/patch"], record["in/labels"], strict=True)
    for cls_LBD, patches_LBND, targets in inputs:
        mean_BD = patches_LBND[-1].astype(dtype).mean(axis=1)
        features = {
            str(n): np.concatenate([*cls_LBD[-n:].astype(dtype), mean_BD], axis=1)
            for n in config["n_last_blocks"]
        }
        if not losses:
            first = _in_order(grid, heads.logits(state["params"], features))
            name = f"out{mark}/logits_step0"
            yield Check(name, first, record[name], 1e-10 if mark else 1e-5)
        state, found = step(state, features, targets)
        losses.append(_in_order(grid, found))
    yield Check(
        f"out{mark}/loss", np.stack(losses), record[f"out{mark}/loss"], 1e-10 if mark else 1e-5
    )
    for part, kind in (("kernel", "weight"), ("bias", "bias")):
        ours = _in_order(grid, {name: p[part] for name, p in state["params"].items()}, stack=False)
        for number, key in enumerate(keys):
            name = f"out{mark}/final/classifiers_dict.{key}.linear.{kind}"
            yield Check(name, ours[number].T, record[name], 1e-10 if mark else 1e-5)


def _in_order(grid, by_features, *, stack: bool = True):
    """What is grouped by features, one entry per head."""
    found: list = [None] * len(grid)
    for name, numbers in heads.grouped(grid).items():
        for place, number in enumerate(numbers):
            found[number] = np.asarray(by_features[name][place])
    return np.stack(found) if stack else found


def replay_logistic(record: Record) -> Iterator[Check | Skip]:
    classes = record.meta["config"]["classes"]
    train, val = (
        (record[f"in/{name}"], record[f"in/{labels}"])
        for name, labels in (("train", "labels"), ("val", "val_labels"))
    )
    strengths = record["out64/C"]
    models = list(logistic.fit(*train, num_classes=classes, strengths=strengths))
    # At C = 1e-6 the recorded weights are nearly 0 and the recorded solver's own residual shows.
    recorded = record["out64/coef"]
    bound = 1e-5 * np.max(np.abs(recorded), axis=(1, 2), keepdims=True)
    bound = np.where(strengths[:, None, None] < 1e-5, 2 * bound, bound)
    ours = np.stack([model.weights_DK.T for model in models])
    yield Check("out64/coef", ours, recorded, np.broadcast_to(bound, recorded.shape))
    ours = np.stack([model.bias_K for model in models])
    yield Check("out64/intercept", ours, record["out64/intercept"], 3e-5)
    yield from _logistic_choice(record, models, train, val, strengths)
    residuals = np.array([model.residual for model in models])
    yield Check("gradient at the solutions", residuals, np.zeros(len(residuals)), 1e-8)
    for name in ("n_iter", "kkt_residual"):
        yield Skip(f"out64/{name}", "of the recorded solver, which stops earlier")


def _logistic_choice(record, models, train, val, strengths) -> Iterator[Check]:
    shares, room = [], []
    for model in models:
        scores = model.scores(val[0])
        best = np.sort(scores, axis=1)
        shares.append(classification.accuracy(scores, val[1]))
        room.append(np.mean(best[:, -1] - best[:, -2] < 1e-4))  # within the solver's error of ties
    yield Check("out64/val_accuracy", shares, record["out64/val_accuracy"], np.array(room))
    chosen = logistic.choose(
        train,
        val,
        num_classes=record.meta["config"]["classes"],
        metric=classification.accuracy,
        strengths=strengths,
    )
    yield record.check("out64/best_C", chosen.strength)
    coef = record["out64/final_coef"]
    bound = 1e-5 * np.max(np.abs(coef))
    yield Check("out64/final_coef", chosen.model.weights_DK.T, coef, bound)
    intercept = record["out64/final_intercept"]
    yield Check("out64/final_intercept", chosen.model.bias_K, intercept, 1e-5)
    probabilities = chosen.model.scores(record["in/test"])
    yield Check("out64/final_test_proba", probabilities, record["out64/final_test_proba"], 1e-5)


def replay_few_shot(record: Record) -> Iterator[Check | Skip]:
    classes = record.meta["config"]["classes"]
    test = record["in/test"], record["in/test_labels"]
    for name in record.under("out64/w_s"):
        shots, penalty = re.fullmatch(r"(\d+)_l2_(.+)", name).groups()  # type: ignore[union-attr]
        labels = np.repeat(np.arange(classes), int(shots))
        train = record[f"in/train{shots}"], labels
        weights = few_shot_ridge.Ridge(*train, classes).weights(float(penalty))
        yield record.check(f"out64/w_s{name}", weights)
        found = few_shot_ridge.accuracies(
            train, test, num_classes=classes, penalties=[float(penalty)]
        )
        ours = found[float(penalty)]
        yield Check(f"out64/acc_s{name}", ours, record[f"out64/acc_s{name}"], FLOAT32_SUMS)


def replay_subsets(record: Record) -> Iterator[Check | Skip]:
    """How many of each class; which ones is another generator's choice."""
    labels, multi = record["in/labels"], record["in/multilabels"]
    for name in record.under("out/"):
        recorded = record[f"out/{name}"]
        if match := re.fullmatch(r"fewshot_([\d.]+)/try(\d+)", name):
            ours = subsets.few_shot(labels, float(match[1]), int(match[2]))
            yield _sizes(f"out/{name}", labels, ours, recorded)
        elif match := re.fullmatch(r"split_([\d.]+)_shuffle[01]/(train|val)", name):
            parts = subsets.hold_out(labels, float(match[1]), 0)
            assert sorted(np.concatenate(parts)) == list(range(len(labels)))
            yield _sizes(f"out/{name}", labels, parts[match[2] == "val"], recorded)
        else:
            count = float(name.split("_")[2].split("/")[0])
            least = np.floor(count * multi.sum(axis=0)) if count < 1 else count
            ours = multi[subsets.few_shot(multi, count, 0)].sum(axis=0)
            yield Check(f"out/{name}, classes short", ours < least, np.zeros(len(ours)), 0)
            yield Skip(f"out/{name}", "the recorded draw balances several classes otherwise")
    for name in record.under("aux/"):
        yield Skip(f"aux/{name}", "draws of torch's generator")


def _sizes(name: str, labels, ours, recorded) -> Check:
    count = functools.partial(np.bincount, minlength=int(labels.max()) + 1)
    return Check(name, count(labels[ours]), count(labels[recorded]), 0)


def replay_transforms(record: Record) -> Iterator[Check | Skip]:
    mean, std = (np.float32(record.meta["config"][name]) for name in ("mean", "std"))
    for number, case in enumerate(record.meta["config"]["cases"]):
        preprocessing = transform_of(case)
        ours = preprocessing(record[f"in/image{number}"])
        levels = [
            (np.asarray(x) * std + mean) * 255
            for x in (ours, record[f"out/tensor{number}"].transpose(1, 2, 0))
        ]
        yield Check(f"out/tensor{number}", *levels, 1.0 + 1e-3)
        different = np.mean(np.abs(levels[0] - levels[1]) > 0.5)
        yield Check(f"out/tensor{number}, share of other grey levels", different, 0.0, 0.05)
    yield from _multi_scale(record)


def transform_of(case: dict) -> Preprocessing:
    size, square = case["resize_size"], case.get("resize_square", False)
    rule, sizes = ("exact", (size, size)) if square else ("short", size)
    if case.get("resize_large_side"):
        rule, sizes = "inside", (size, size)
    return Preprocessing(
        case["crop_size"] or None,
        sizes,
        "fixed",
        IMAGENET_MEAN,
        IMAGENET_STD,
        rule=rule,
        resize_as="tensors",
    )


def _multi_scale(record: Record) -> Iterator[Check]:
    with jax.enable_x64(True):
        images = jnp.asarray(record["in/multiscale_x"].transpose(0, 2, 3, 1))
        weights = record["in/multiscale_W"].T

        def features(images_BHWC):
            means = jnp.tanh(images_BHWC).mean(axis=(1, 2))
            return (means + images_BHWC[:, 0, 0]) @ weights

        for scale in multi_scale.SCALES[1:]:
            resized = multi_scale.rescaled(images, scale)
            name = f"out64/resized_{scale:.4f}"
            yield Check(name, resized.transpose(0, 3, 1, 2), record[name], 1e-12)
        plain = multi_scale.multi_scale(features, images, normalize=False)
        yield Check("out64/multiscale", plain, record["out64/multiscale"], 1e-12)
        unit = multi_scale.multi_scale(features, images)
        yield Check(
            "out64/multiscale_normalized", unit, record["out64/multiscale_normalized"], 1e-12
        )


def replay_revisited(record: Record) -> Iterator[Check | Skip]:
    ks = record.meta["config"]["kappas"]
    for protocol in retrieval.PROTOCOLS:
        found = retrieval.evaluate(record["in/ranks"].T, record["in/labels"], protocol, ks)
        ours = {
            "map": found.mean,
            "mp": found.mean_precisions,
            "aps": np.nan_to_num(found.average_precisions, nan=-1),
            "prs": np.nan_to_num(found.precisions_QK, nan=-1),
        }
        for name, value in ours.items():
            recorded = np.nan_to_num(record[f"out64/{protocol}/{name}"], nan=-1)
            yield Check(f"out64/{protocol}/{name}", value, recorded, 1e-12)


def replay_amstertime(record: Record) -> Iterator[Check | Skip]:
    for name, results in (("full", record["in/results"]), ("first", record["in/results"][:, :1])):
        mean, top = retrieval.reciprocal_ranks(results)
        key = "out64/full" if name == "full" else "out64/first_column_only"
        yield Check(key, np.array([mean, *top]), record[key], 1e-12)


def replay_met(record: Record) -> Iterator[Check | Skip]:
    config = record.meta["config"]
    labels, query_labels = record["in/train_labels"], record["in/query_labels"]
    whitening = met.fit_whitening(record["in/train"], config["whiten_dims"])
    train, query = whitening(record["in/train"]), whitening(record["in/query"])
    axes = record["out64/pca_P"]
    signs = np.sign(np.sum(whitening.axes_DK * axes, axis=0))
    yield Check("out64/pca_mean", whitening.mean_D[None], record["out64/pca_mean"], 1e-12)
    yield Check("out64/pca_P", whitening.axes_DK * signs, axes, 1e-9)
    for name, ours in (("train", train), ("query", query)):
        yield Check(f"out/{name}_whitened", ours * signs, record[f"out/{name}_whitened"], 1e-6)
    # What follows starts from the recorded descriptors, whose float32 decides ties.
    wide = [record[f"out/{name}_whitened"].astype(np.float64) for name in ("query", "train")]
    similarities = wide[0] @ wide[1].T
    order = retrieval.ranking(similarities)
    near = np.take_along_axis(similarities, order, axis=1)
    for name in [n.removesuffix("/pred") for n in record.under("out/") if n.endswith("/pred")]:
        k, temperature = re.fullmatch(r"K(\d+)_t(.+)", name).groups()  # type: ignore[union-attr]
        found = met.classify(
            near[:, : int(k)],
            labels[order[:, : int(k)]],
            temperature=float(temperature),
            num_classes=config["n_classes_seen"],
        )
        yield Check(f"out/{name}/pred", found[0], record[f"out/{name}/pred"], 0)
        yield Check(f"out/{name}/conf", found[1], record[f"out/{name}/conf"], 2e-6)
        values = np.array(list(met.scores(*found, query_labels).values()))
        key = f"out/{name}/gap_gapminus_acc"
        yield Check(key, values, record[key], 1e-9)
    few = slice(0, 30)
    k, temperature, gap = met.tune(
        near[few],
        labels[order[few]],
        query_labels[few],
        num_classes=config["n_classes_seen"],
        neighbors=config["grid"]["K"],
        temperatures=config["grid"]["t"],
    )
    yield Check("out/tuned_K_t", np.array([k, temperature]), record["out/tuned_K_t"], 0)
    yield Check("out/tuned_gap", gap, record["out/tuned_gap"], 1e-9)

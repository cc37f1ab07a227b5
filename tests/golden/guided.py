"""Replays of recorded guides, SIGReg and what else belongs to training guided by metadata."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval import attention_pooling as pooling
from dinojax.losses import guides, sigreg
from dinojax.losses.specs import GuideSpec
from dinojax.models.guides import GuideHead, GuideHeadSpec
from dinojax.train import guidance
from dinojax.train.initialize import expand_channels
from dinojax.train.ramps import guide_ramp
from tests.golden.record import Check, Record


def run(record: Record, function, *inputs):
    """What a function gives in float64."""
    with jax.enable_x64(True):
        made = jax.jit(function)(*jax.tree.map(jnp.asarray, inputs))
        return jax.tree.map(np.asarray, made)


def replay_sigreg(record: Record) -> Iterator[Check]:
    for name, case in record.meta["cases"].items():
        crops, directions = record[f"{name}/in/z"], record[f"{name}/in/A"]
        grid = sigreg.grid(case.get("range_max", 5.0), case.get("n_knots", 17))
        weight = case.get("loss_weight", 1.0) * case.get("crops", 1)

        def loss(z, a, grid=grid, weight=weight):
            rows_BGZ = z.swapaxes(0, 1) if z.ndim == 3 else z[:, None]
            value = sigreg.sigreg_loss(sigreg.waves(rows_BGZ, a, grid.points_T), grid)
            return weight * value, value

        grad = jax.value_and_grad(loss, has_aux=True)
        (weighted, value), grad_z = run(record, grad, crops, directions)
        if "crops" in case:
            yield record.check(f"{name}/out64/sigreg_loss", value)
            yield record.check(f"{name}/out64/weighted", weighted)
        else:
            yield record.check(f"{name}/out64/loss", value)
            yield from _grid(record, name, grid)
        yield _near(record, f"{name}/grad64/z", grad_z)


def _near(record: Record, name: str, ours) -> Check:
    """A gradient that is exactly 0 there is rounding here."""
    recorded = record[name]
    return Check(name, ours, recorded, max(record.bound(recorded), 1e-16))


def _grid(record: Record, name: str, grid: sigreg.Grid) -> Iterator[Check]:
    """Their whole grid and window; ours is its half, with the trapezoids of both in weights."""
    points = np.asarray(grid.points_T)
    whole = np.concatenate([-points[:0:-1], points])
    trapezoids = (points[1] - points[0]) * np.where(points > 0, 2.0, 1.0)
    trapezoids[-1] /= 2
    weights = np.asarray(grid.weights_T) / trapezoids
    yield record.check(f"{name}/buf64/t", whole)
    yield record.check(f"{name}/buf64/weights", np.concatenate([weights[:0:-1], weights]))


def replay_gradient_scaling(record: Record) -> Iterator[Check]:
    for name in record.under("out64/"):
        factor = float(name.removeprefix("y_"))

        def scaled(x, upstream, factor=factor):
            y, back = jax.vjp(lambda x: guides.scaled_gradient(x, factor), x)
            return y, back(upstream)[0]

        y, grad = run(record, scaled, record["in/x"], record["in/upstream"])
        yield Check(f"out64/{name}", y, record[f"out64/{name}"], 0.0)
        yield record.check(f"grad64/x_{name.removeprefix('y_')}", grad)


def replay_prototypical(record: Record) -> Iterator[Check]:
    momentum, floor = record.meta["momentum"], record.meta["phi_min"]
    state = {
        "centroids": record["in/centroids0"],
        "temperatures": record["in/concentration0"],
        "counts": np.zeros(record.meta["classes"], np.int64),
    }

    def loss(student_BGD, state, labels, factor):
        seen = guides.scaled_gradient(student_BGD, factor)
        logits = guides.prototype_logits(seen, state, min_temperature=floor)
        right = jnp.mean(jnp.argmax(logits, -1) == labels[:, None])
        return jnp.mean(guides.cross_entropy(logits, labels)), right

    grad = jax.value_and_grad(loss, has_aux=True)
    for step in range(3):
        at = f"step{step}"
        student, teacher = (
            record[f"{at}/in/{who}"].swapaxes(0, 1) for who in ("student", "teacher")
        )
        labels = record[f"{at}/in/labels"]
        (value, right), back = run(record, grad, student, state, labels, record[f"{at}/in/lambda"])
        yield record.check(f"{at}/out64/loss", value)
        accuracy = record[f"{at}/out64/accuracy"]  # a float32 mean
        yield Check(f"{at}/out64/accuracy", right, accuracy, 1e-7)
        yield record.check(f"{at}/grad64/student", back.swapaxes(0, 1))

        def moved(state, teacher, labels):
            return guides.moved_prototypes(state, teacher, labels, momentum=momentum)

        state = run(record, moved, state, teacher, labels)
        for ours, theirs in PROTOTYPES.items():
            yield record.check(f"{at}/out64/{theirs}", state[ours])
    state["centroids"] = record["in/centroids0"]
    state["temperatures"] = record["floor/in/concentration"]
    inputs = record["floor/in/student"][:, None], state, record["floor/in/labels"], 1.0
    (value, _), back = run(record, grad, *inputs)
    yield record.check("floor/out64/loss", value)
    yield record.check("floor/grad64/student", back[:, 0])


PROTOTYPES = {
    "centroids": "centroids",
    "temperatures": "concentration",
    "counts": "counts",
}


# -- heads --------------------------------------------------------------------------------------


def head_of(record: Record, prefix: str) -> tuple[GuideHead, dict]:
    """A guide's head and its parameters; theirs are every third of a sequence."""
    kind = "classifier" if record.under(f"{prefix}classifier.") else "regressor"
    names = record.under(f"{prefix}{kind}.")
    numbers = sorted({int(name.split(".")[0]) for name in names})
    params, widths = {}, []
    for layer, number in enumerate(numbers):
        weight = record[f"{prefix}{kind}.{number}.weight"]
        widths.append(weight.shape[1])
        bias = record[f"{prefix}{kind}.{number}.bias"]
        params[f"layer{layer}"] = {"kernel": weight.T, "bias": bias}
    spec = GuideHeadSpec(widths[0], tuple(widths[1:]), weight.shape[0], jnp.dtype("float64"))
    return GuideHead(spec), params


def their_names(kind: str, tree: dict) -> dict:
    """Their tensors of our parameters of a head, or of its gradients."""
    return {
        f"{kind}.{3 * int(layer.removeprefix('layer'))}.{name}": (
            np.asarray(value).T if theirs == "kernel" else np.asarray(value)
        )
        for layer, values in tree.items()
        for theirs, value in values.items()
        for name in ["weight" if theirs == "kernel" else "bias"]
    }


def replay_guide_heads(record: Record) -> Iterator[Check]:
    cls_BGD = record["in/cls"].swapaxes(0, 1)
    for name, case in record.meta["cases"].items():
        head, params = head_of(record, f"{name}/w/")
        rows = _targets(record, name, case)

        def loss(params, cls_BGD, case=case, head=head, rows=rows):
            seen = guides.scaled_gradient(cls_BGD, case["lambda_"])
            out_BGC = head.apply({"params": params}, seen)
            loss_BG, metric_B = _loss_of(case, out_BGC, jnp.asarray(rows))
            return jnp.mean(loss_BG), jnp.mean(metric_B)

        grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (value, metric), (grads, grad_cls) = run(record, grad, params, cls_BGD)
        yield record.check(f"{name}/out64/loss", value)
        yield Check(f"{name}/out64/metric", metric, record[f"{name}/out64/metric"], 1e-7)
        yield _near(record, f"{name}/grad64/cls", grad_cls.swapaxes(0, 1))
        kind = "regressor" if case["method"] == "regression" else "classifier"
        for theirs, ours in their_names(kind, grads).items():
            yield record.check(f"{name}/grad64/{theirs}", ours)
        if f"{name}/out64/targets" in record:
            yield record.check(f"{name}/out64/targets", rows)


def _targets(record: Record, name: str, case: dict) -> np.ndarray:
    if "bce" in case["method"]:
        return record["in/multi_labels"].astype(np.float64)
    if case["method"] == "classification":
        return record["in/labels"]
    if "output_min" not in case:
        return record["in/target1"][:, None]
    low, high = np.array(case["output_min"]), np.array(case["output_max"])
    return (record["in/target2"] - low) / (high - low + 1e-8)


def _loss_of(case: dict, out_BGC, rows):
    """(loss of each image and crop, metric of each image's first crop)."""
    if "bce" in case["method"]:
        right = jnp.all((out_BGC[:, 0] > 0) == (rows > 0.5), axis=-1)
        return guides.binary_cross_entropy(out_BGC, rows), right
    if case["method"] == "classification":
        return guides.cross_entropy(out_BGC, rows), jnp.argmax(out_BGC[:, 0], -1) == rows
    error = guides.squared_error(guides.ACTIVATIONS[case["activation"]](out_BGC), rows)
    return error, error[:, 0]


def replay_guide_normalisation(record: Record) -> Iterator[Check]:
    for name, case in record.meta["cases"].items():
        specs, student = [], {}
        for number, (kind, weight) in enumerate(zip(case["kinds"], case["weights"], strict=True)):
            head, params = head_of(record, f"{name}/w/g{number}/")
            student[f"{guidance.PART}g{number}"] = params
            specs.append(
                GuideSpec(
                    name=f"g{number}",
                    kind={"ce": "classification", "mse": "regression"}[kind],
                    reverse=case["grl"][number],
                    weight=weight / (10 if case["grl"][number] else 1),
                    outputs=head.spec.outputs,
                    hidden=head.spec.hidden,
                    activation="none",
                    high=1.0 - 1e-8,
                )
            )
        guided = guidance.Guidance(tuple(specs), record[f"{name}/in/cls"].shape[-1], "norms")
        yield from _normalised(record, name, guided, student, case["lambda_"])


def _normalised(record: Record, name: str, guided, student, factor: float) -> Iterator[Check]:
    cls_BGD = record[f"{name}/in/cls"].swapaxes(0, 1)
    metadata = {
        spec.name: record["target1" if spec.kind == "regression" else "labels"]
        for spec in guided.specs
    }

    def added(cls_BGD, student, metadata):
        rows, place = guided.rows(metadata), {"whole": {}, "now": {"guide": factor}}
        squares = guided.squares(student, cls_BGD, rows, *place.values())
        total, told = guided.total(student, cls_BGD, rows, squares=squares, **place)
        return total, (told, squares)

    grad = jax.value_and_grad(added, has_aux=True)
    (total, (told, squares)), grad_cls = run(record, grad, cls_BGD, student, metadata)
    yield record.check(f"{name}/out64/contribution", total)
    yield record.check(f"{name}/grad64/cls", grad_cls.swapaxes(0, 1))
    for spec in guided.specs:
        weighted = spec.weight * told[f"guide/{spec.name}"]
        yield _near(record, f"{name}/out64/weighted_{spec.name}", weighted)
        key = f"{name}/out64/grad_norm/{spec.name}"
        yield _near(record, key, np.sqrt(squares[spec.name]))
        if f"{key}_scale" in record:
            yield record.check(f"{key}_scale", told[f"guide_factor/{spec.name}"])
    yield from _gradients_of_each(record, name, guided, (student, cls_BGD, metadata, factor))


def _gradients_of_each(record: Record, name: str, guided, inputs) -> Iterator[Check]:
    """Before they are made equal, of each guide alone."""
    student, cls_BGD, metadata, factor = inputs
    for spec in guided.specs:
        one = dataclasses.replace(guided, specs=(spec,), equalize="none")

        def weighted(cls_BGD, student, metadata, one=one):
            rows, place = one.rows(metadata), {"whole": {}, "now": {"guide": factor}}
            return one.total(student, cls_BGD, rows, squares=None, **place)[0]

        found = run(record, jax.grad(weighted), cls_BGD, student, metadata)
        yield _near(record, f"{name}/grad64/weighted_{spec.name}", found.swapaxes(0, 1))


def replay_ramp(record: Record) -> Iterator[Check]:
    """Beyond the end of a run theirs goes on to rise; ours has no such step."""
    rows = [row for row in record.entries["rows"] if row[3] <= row[2]]
    ours = [
        guide_ramp(step, shape=shape, start=start, num_steps=num_steps)
        for shape, start, num_steps, step, _ in rows
    ]
    wanted = np.array([row[-1] for row in rows])
    yield Check("rows", np.array(ours), wanted, 1e-12)


def replay_patch_channels(record: Record) -> Iterator[Check]:
    kernel = record["in/w"].transpose(2, 3, 1, 0)  # [p, p, C, D]
    for name, channels in (("w4", 4), ("w5", 5), ("w3", 3)):
        ours = expand_channels(kernel, channels)
        yield record.check(f"out64/{name}", ours.transpose(3, 2, 0, 1))
    plain = expand_channels(kernel, 4) * 4 / 3
    yield record.check("out64/w4_plain", plain.transpose(3, 2, 0, 1))


def replay_attention_pooling(record: Record) -> Iterator[Check]:
    for name, case in record.meta["cases"].items():
        blocks = range(3 - case["use_n_blocks"], 3)  # the last ones
        patches = [record[f"in/patches{i}"] for i in blocks]
        cls = [record[f"in/cls{i}"] for i in blocks] if case.get("use_cls_patch") else []
        weights = {n: record[f"{name}/w/{n}"] for n in record.under(f"{name}/w/")}
        unit = case.get("l2_normalize_input", False)

        def loss(weights, patches, cls, case=case, unit=unit):
            tokens = pooling.tokens_of(patches, cls, unit=unit)
            scores = pooling.logits(_pooling_params(weights), tokens, heads=case["num_heads"])
            log = jax.nn.log_softmax(scores)
            return -jnp.mean(log[jnp.arange(3), jnp.array([0, 3, 5])]), scores

        grad = jax.value_and_grad(loss, has_aux=True)
        (value, scores), grads = run(record, grad, weights, patches, cls)
        yield record.check(f"{name}/out64/logits", scores)
        yield record.check(f"{name}/out64/loss", value)
        for theirs, ours in grads.items():
            yield _near(record, f"{name}/grad64/{theirs}", ours)


def _pooling_params(weights: dict) -> dict:
    def linear(name: str) -> dict:
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    return {
        "query": weights["query_token"],
        "input": linear("input_proj"),
        "norm": {"scale": weights["ln.weight"], "bias": weights["ln.bias"]},
        "keys_values": linear("kv"),
        "output": linear("linear"),
    }

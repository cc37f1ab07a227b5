"""Replays of recorded label propagation, J and F, and attentive probes."""

import functools
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.eval import attentive_probe, propagation, video_metrics
from dinojax.ops.interpolate import resize
from tests.golden.record import Check, Record, at_both_precisions


def replay_jf(record: Record) -> Iterator[Check]:
    truth, predicted, void = (record[f"in/{name}"] for name in ("gt", "pred", "void"))
    cases = {"": {}, "_void": {"void_THW": void}, "_th3px": {"pixels": 3}}
    for mark, options in cases.items():
        j_OT, f_OT = video_metrics.object_scores(predicted, truth, **options)
        if not mark:
            plain = {"J": j_OT, "F": f_OT}
        for letter, ours in (("J", j_OT), ("F", f_OT)):
            if f"out64/{letter}{mark}" in record:
                yield record.check(f"out64/{letter}{mark}", ours)
    j_OT, f_OT = video_metrics.object_scores(predicted[:2], truth)
    yield record.check("out64/J_semisup_2of3", j_OT)
    yield record.check("out64/F_semisup_2of3", f_OT)
    edges = np.stack([video_metrics.boundary(frame) for frame in truth[0]])
    yield record.check("out/boundary_gt0", edges)
    for letter, values in plain.items():
        rows = np.array([video_metrics.statistics(row) for row in values])
        yield record.check(f"out64/stats_{letter}_M_R_D", rows)
    order = _proposals(record, predicted, truth)
    yield record.check("out64/unsup_J_F", order)


def _proposals(record: Record, predicted, truth) -> np.ndarray:
    """The proposals of the recorded unsupervised case are the objects in another order."""
    recorded = record["out64/unsup_J_F"]
    for order in ([2, 0, 1], [1, 2, 0], [0, 2, 1], [1, 0, 2], [2, 1, 0], [0, 1, 2]):
        ours = np.stack(video_metrics.best_assignment(predicted[order], truth))
        if ours.shape == recorded.shape and np.allclose(ours, recorded):
            return ours
    return ours


def replay_propagation(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    grid, size = (config["h"], config["w"]), record["in/first_mask"].shape
    tokens = propagation.first_labels(record["in/first_mask"], grid)
    yield record.check("out/first_mask_tokens", tokens)
    labels = np.eye(config["M"])[tokens]
    for name in record.under("out64/probs/"):
        shape, radius, k, temperature, context = re.fullmatch(
            r"(circle|square)(.+)_k(\d+)_T(.+)_c(\d+)", name
        ).groups()
        settings = propagation.Settings(
            int(context), float(radius), shape, int(k), float(temperature)
        )
        near = propagation.neighbourhood(grid, settings.radius, shape)
        yield record.check(f"out/mask_{shape}{radius}", near)
        with jax.enable_x64(True):
            found = list(propagation.propagate(record["in/features"], labels, settings))
            yield record.check(f"out64/probs/{name}", np.stack(found))
            bilinear = [propagation.predicted(soft, size) for soft in found]
        yield record.check(f"aux/pred_bilinear/{name}", np.stack(bilinear))
        notebook = [propagation.predicted(soft, size, rule="notebook") for soft in found]
        yield record.check(f"out/pred_notebook/{name}", np.stack(notebook))
    yield from _original(record, labels)


def _original(record: Record, labels) -> Iterator[Check]:
    """DINO's own script is the same rule with other settings."""
    own = record.meta["config"]["dino"]
    settings = propagation.Settings(
        own["last_frames"], own["radius"], "square", own["topk"], own["temperature"]
    )
    with jax.enable_x64(True):
        found = np.stack(list(propagation.propagate(record["in/features"], labels, settings)))
    yield record.check("out64/dino_original/seg", np.moveaxis(found, -1, 1))
    # Stretched over an enlarged frame, of which every eighth row and column is recorded.
    with jax.enable_x64(True):
        size = tuple(8 * side for side in found.shape[1:3])
        large = resize(jnp.asarray(found[-1:]), size, method="bilinear", antialias=False)[0]
    scaled = propagation.stretched(np.asarray(large))[::8, ::8]
    yield record.check("out64/dino_original/norm_mask_last", np.moveaxis(scaled, -1, 0))


def replay_attentive(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    names = {name: record[f"w/{name}"] for name in record.under("w/")}
    heads = {"num_heads": config["heads"]}

    def run(tokens, *weights):
        params = _probe(dict(zip(names, weights, strict=True)), config["depth"])
        return {"out": class_logits(params, tokens)}

    class_logits = jax.jit(functools.partial(attentive_probe.class_logits, **heads))
    inputs = record["in/tokens"], *names.values()
    yield from at_both_precisions(record, "logits", run, *inputs)
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(value, jnp.float64) for name, value in names.items()}
        params = _probe(wide, config["depth"])
        tokens = jnp.asarray(record["in/tokens"], jnp.float64)
        labels = jnp.asarray(record["in/labels"])
        found = jax.jit(functools.partial(attentive_probe.pooled, **heads))(params, tokens)
        yield record.check("out64/pooled", found[:, None])
        probe_loss = functools.partial(attentive_probe.probe_loss, **heads)
        loss, grads = jax.jit(jax.value_and_grad(probe_loss))(params, tokens, labels)
        yield record.check("out64/loss", loss)
        yield record.check("grad64/pooler.query_tokens", grads["query"][None])
        yield record.check("grad64/linear.weight", grads["head"]["kernel"].T)


def _probe(weights: dict, depth: int) -> dict:
    def linear(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def mlp(name):
        return {"up": linear(f"{name}.fc1"), "down": linear(f"{name}.fc2")}

    blocks = [
        {
            "norm1": norm(f"{prefix}.norm1"),
            "qkv": linear(f"{prefix}.attn.qkv"),
            "out": linear(f"{prefix}.attn.proj"),
            "norm2": norm(f"{prefix}.norm2"),
            "mlp": mlp(f"{prefix}.mlp"),
        }
        for prefix in (f"pooler.blocks.{number}" for number in range(depth - 1))
    ]
    cross = "pooler.cross_attention_block"
    return {
        "blocks": blocks,
        "query": weights["pooler.query_tokens"][0],
        "cross": {
            "norm1": norm(f"{cross}.norm1"),
            "q": linear(f"{cross}.xattn.q"),
            "kv": linear(f"{cross}.xattn.kv"),
            "norm2": norm(f"{cross}.norm2"),
            "mlp": mlp(f"{cross}.mlp"),
        },
        "head": linear("linear"),
    }


# File name -> (marker in the content, replay); see tests/replay_golden.py.
KINDS = {
    r"video_davis_jf.*\.npz": (r"out64/J_semisup_2of3", replay_jf),
    r"video_label_propagation.*\.npz": (r"out64/dino_original/seg", replay_propagation),
    r"video_attentive_probe.*\.npz": (r"out64/pooled", replay_attentive),
}

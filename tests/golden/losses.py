"""Replays of recorded losses, targets and resized patches."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.losses.dino import dino_loss
from dinojax.losses.gram import gram_loss, resize_patches
from dinojax.losses.ibot import ibot_loss
from dinojax.losses.koleo import koleo_loss
from dinojax.losses.sinkhorn import sinkhorn, softmax_targets, update_center
from tests.golden.record import Check, Record, Skip, at_both_precisions, with_gradient


def parse(pattern: str, name: str) -> tuple[str, ...]:
    """What a quantity's name says of its settings. Raises ValueError when it says nothing."""
    match = re.fullmatch(pattern, name)
    if match is None:
        raise ValueError(f"{name!r} is not of the form {pattern}.")
    return match.groups()


def replay_dino(record: Record) -> Iterator[Check]:
    temperature = record.meta["student_temp"]
    for name in record.under("out/"):
        student, ignore = name.split("/")

        def loss(student_SBK, teacher_TBK, skip=ignore == "ignore1"):
            return dino_loss(
                student_SBK.swapaxes(0, 1),
                teacher_TBK.swapaxes(0, 1),
                temperature=temperature,
                skip_same_crop=skip,
            )

        inputs = record[f"in/{student}"], record["in/teacher_probs"]
        yield from at_both_precisions(record, name, with_gradient(jax.jit(loss)), *inputs)


def replay_ibot(record: Record) -> Iterator[Check]:
    temperature, masks = record.meta["student_temp"], record["in/masks"]
    rows, patches = (index.astype(np.int32) for index in np.nonzero(masks))
    weights = 1.0 / masks.sum(axis=1)[rows]  # the float64 runs use the unrounded ones
    yield record.check("in/masks_weight", weights.astype(np.float32))

    def loss(logits_MK, targets_MK, weights_M):
        if logits_MK.ndim == 3:  # every patch of every crop
            logits_MK, targets_MK = logits_MK[rows, patches], targets_MK[rows, patches]
        return ibot_loss(  # rows beyond the masked ones are padding
            logits_MK[: len(rows)],
            targets_MK[: len(rows)],
            weights_M,
            num_crops=len(masks),
            temperature=temperature,
        )

    for name in record.under("out/"):
        suffix = {"with_weight": "", "no_weight": ""}.get(name, f"_{name}")
        student = record[f"in/student{suffix}"]
        teacher = record["in/teacher_probs" if not suffix else f"in/teacher{suffix}"]
        run = with_gradient(jax.jit(loss))
        yield from at_both_precisions(record, name, run, student, teacher, weights)


def replay_koleo(record: Record) -> Iterator[Check | Skip]:
    for name in record.under("out/"):
        if name.endswith("_nn"):
            yield Skip(f"out/{name}", "the loss does not return the indices of neighbours")
            continue
        # Not jitted: a fused multiply and subtract would leave rounding errors between images
        # that are equal up to a factor, where the recorded distance is exactly 0.
        run = with_gradient(lambda cls_VD: koleo_loss(cls_VD[None]))
        yield from at_both_precisions(record, name, run, record[f"in/{name}"])


def replay_koleo_distributed(record: Record) -> Iterator[Check]:
    """Ranks hold consecutive images; a rank's loss is the mean over its own."""
    ranks = sorted({int(n.split("/")[0].removeprefix("rank")) for n in record.under("in/")})
    inputs_RVD = np.stack([record[f"in/rank{r}/x"] for r in ranks])
    cases = dict.fromkeys(name.split("/rank")[0] for name in record.under("out/"))
    for case in cases:
        parts = parse(r"topk(\d+)/group(\d+|None)", case)
        neighbors = int(parts[0])
        group = inputs_RVD.shape[0] * inputs_RVD.shape[1] if parts[1] == "None" else int(parts[1])

        def loss(x_RVD, group=group, neighbors=neighbors):
            return koleo_loss(x_RVD.reshape(-1, group, x_RVD.shape[-1]), num_neighbors=neighbors)

        joint = Record.__new__(Record)  # the ranks' losses averaged, their gradients stacked
        joint.meta, joint.entries = record.meta, {}
        for mark in ("", "64"):
            losses = [record[f"out{mark}/{case}/rank{r}/loss"] for r in ranks]
            grads = [record[f"grad{mark}/{case}/rank{r}/x"] for r in ranks]
            joint.entries[f"out{mark}/{case}"] = np.mean(losses)
            joint.entries[f"grad{mark}/{case}"] = np.stack(grads) / len(ranks)
        yield from at_both_precisions(joint, case, with_gradient(jax.jit(loss)), inputs_RVD)


def replay_gram(record: Record) -> Iterator[Check]:
    student, teacher = record["in/student"], record["in/teacher"]
    for name in record.under("out/"):
        options = {"normalize": True, "per_image": False, "clip": "none"}
        inputs = student, teacher
        if name == "flat2d":
            inputs = tuple(x.reshape(-1, x.shape[-1]) for x in inputs)
        else:
            flags = parse(r"norm(.)_removeneg(.)_onlyteacherneg(.)_img(.)", name)
            norm, both, only_teacher, per_image = (flag == "1" for flag in flags)
            clip = "both" if both else "teacher" if only_teacher else "none"
            options = {"normalize": norm, "per_image": per_image, "clip": clip}
        run = with_gradient(jax.jit(lambda s, t, options=options: gram_loss(s, t, **options)))
        yield from at_both_precisions(record, name, run, *inputs)


def replay_gram_resize(record: Record) -> Iterator[Check]:
    for name in record.under("out/"):
        case, options, whose = name.split("/")
        method, antialias, tokens = parse(r"([a-z]+)_antialias([01])_([a-z]+)", options)
        masks = record[f"in/{case}/masks"]
        select = {"all": slice(None), "masked": masks, "unmasked": ~masks}[tokens]
        side = int(np.sqrt(record[f"in/{case}/student_patches"].shape[1]))

        def patches(x, whose=whose, side=side, select=select, options=(method, antialias)):
            if whose == "teacher":
                x = resize_patches(x, side, method=options[0], antialias=options[1] == "1")
            return {"out": x[select]}

        yield from at_both_precisions(record, name, patches, record[f"in/{case}/{whose}_patches"])


def replay_sinkhorn(record: Record) -> Iterator[Check]:
    for name in dict.fromkeys(record.under("out/") + record.under("out64/")):
        if name.endswith("_isnan"):
            continue  # where the reference's float32 overflows; ours is checked below
        case, temperature, iterations = parse(r"(.+)/temp(.+)/it(\d+)", name)

        def run(logits_NK, t=float(temperature), n=int(iterations)):
            return {"out": sinkhorn(logits_NK, t, num_iterations=n)}

        logits = record[f"in/{case}"]
        yield from at_both_precisions(record, name, run, logits)
        if f"out/{name}" not in record:
            # Logits themselves are rounded: their relative error times their size is the bound.
            size = np.max(np.abs(logits)) / float(temperature)
            bound = 2.0 * np.finfo(np.float32).eps * size
            ours = np.asarray(run(jnp.asarray(logits))["out"])
            yield Check(f"out64/{name} in float32", ours, record[f"out64/{name}"], bound)
    yield from _sinkhorn_over_ranks(record)


def _sinkhorn_over_ranks(record: Record) -> Iterator[Check]:
    for name in record.under("out2/"):
        case, temperature, rank = parse(r"(.+)/temp(.+)/rank(\d+)", name)
        shards = [record[f"in2/{n}"] for n in sorted(record.under("in2/")) if n.startswith(case)]
        start = sum(len(shard) for shard in shards[: int(rank)])
        rows = slice(start, start + len(shards[int(rank)]))

        def run(logits_NK, t=float(temperature), rows=rows):
            return {"out2": sinkhorn(logits_NK, t)[rows]}

        yield from at_both_precisions(record, name, run, np.concatenate(shards))


def replay_softmax_centering(record: Record) -> Iterator[Check]:
    temperature, momentum = record.meta["teacher_temp"], record.meta["center_momentum"]
    cases = dict.fromkeys(name.rsplit("_step", 1)[0] for name in record.under("in/"))
    for case in cases:
        steps = sorted(record.under(f"in/{case}_step"), key=int)

        def run(*logits, name=""):
            center_K = jnp.zeros(logits[0].shape[-1], logits[0].dtype)
            for step, x in enumerate(logits):
                if name == f"probs{step}":
                    return {"out": softmax_targets(x, center_K, temperature)}
                center_K = update_center(center_K, x, momentum)
                if name == f"center{step + 1}":
                    return {"out": center_K}
            raise ValueError(f"{name!r} is not a quantity of softmax centring.")

        for name in record.under(f"out/{case}/"):
            shape = record[f"out/{case}/{name}"].shape

            def shaped(*logits, run=run, name=name, shape=shape):
                return {"out": run(*logits, name=name)["out"].reshape(shape)}

            inputs = [record[f"in/{case}_step{step}"] for step in steps]
            yield from at_both_precisions(record, f"{case}/{name}", shaped, *inputs)

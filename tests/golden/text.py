"""Replays of recorded text alignment: networks, contrastive loss, training steps."""

import dataclasses
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dinojax.losses.contrastive import contrastive_loss
from dinojax.losses.gram import gram_loss
from dinojax.models.layers import l2_normalize
from dinojax.models.text_networks import TextNetworks, cosines
from dinojax.models.text_tower import TextHead, TextSpec, TextTower
from dinojax.models.vision_head import VisionHead, VisionHeadSpec
from dinojax.models.vit import Vit
from dinojax.sharding.batch import split_batch
from dinojax.text import dense, vocabulary
from dinojax.text.tokenizer import Tokenizer
from dinojax.text.zeroshot import class_vectors, patch_half
from dinojax.train import optim
from dinojax.train.state import State
from dinojax.train.text_objective import TextInputs, TextObjective
from dinojax.train.text_step import TextStep
from dinojax.weights import dinotxt as released
from tests.golden.networks import images, vit_spec
from tests.golden.record import Check, Record, Skip

POOLS = {"argmax": "end", "first": "first", "last": "last"}
# What a recorded configuration leaves at the reference's default.
VISION = {
    "ffn_layer": "mlp",
    "qkv_bias": True,
    "proj_bias": True,
    "ffn_bias": True,
    "in_chans": 3,
    "drop_path_rate": 0.0,
    "untie_cls_and_patch_norms": False,
    "untie_global_and_local_cls_norm": False,
    "pos_embed_rope_base": 100.0,
    "pos_embed_rope_min_period": None,
    "pos_embed_rope_max_period": None,
    "pos_embed_rope_normalize_coords": "separate",
}


def networks(record: Record, dtype) -> TextNetworks:
    """Our networks from a recorded configuration, in the reference's words."""
    cfg = record.meta["config"]
    model, text = cfg["model"], cfg["text"]
    rope = "float64" if dtype == np.float64 else None
    vision = {**VISION, **cfg["vision"]}
    backbone = vit_spec(vision, num_heads=vision["num_heads"], dtype=dtype, rope_dtype=rope)
    outputs = model["embed_dim"] // 2
    head = VisionHeadSpec(
        width=backbone.width,
        depth=model["vision_model_num_head_blocks"],
        num_heads=backbone.num_heads,
        outputs=None if outputs == backbone.width else outputs,
        pool=model.get("vision_model_patch_tokens_pooler_type", "mean"),
        dtype=jnp.dtype(dtype),
    )
    spec = TextSpec(
        vocabulary=text["vocab_size"],
        context=text["context_length"],
        width=text["dim"],
        depth=text["num_layers"],
        num_heads=text["num_heads"],
        outputs=model["embed_dim"],
        ffn_ratio=text["ffn_ratio"],
        layer_scale=text["ls_init_value"],
        causal=text["is_causal"],
        pool=POOLS[model["text_model_tokens_pooler_type"]],
        head_depth=model.get("text_model_num_head_blocks", 0),
        head_causal=model["text_model_head_blocks_is_causal"],
        dtype=jnp.dtype(dtype),
    )
    layer = model.get("vision_model_patch_token_layer", 1)
    sides = VisionHead(head), TextTower(spec), TextHead(spec)
    return TextNetworks(Vit(backbone), *sides, patch_layer=layer)


def params(record: Record, nets: TextNetworks, dtype, *, prefix: str = "w/") -> dict:
    """Our tree from the recorded tensors under a prefix, with those of the backbone if it has."""
    tensors = {name: record[prefix + name] for name in record.under(prefix)}
    text = nets.text_tower.spec.num_heads
    heads = {
        "vision_head": nets.vision_head.spec.num_heads,
        "text_tower": text,
        "text_head": text,
    }
    tree = {part: released.to_ours(tensors, part, num_heads=n) for part, n in heads.items()}
    tree["logit_scale"] = tensors["logit_scale"].reshape(())
    if record.under(f"{prefix}{released.BACKBONE}"):
        tree["backbone"] = released.backbone_of(tensors, nets.backbone.spec)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, dtype)), tree)


def replay_forward(record: Record) -> Iterator[Check]:
    """Every recorded output of both sides, in both precisions."""
    for mark, dtype in (("", np.float32), ("64", np.float64)):
        with jax.enable_x64(dtype == np.float64):
            yield from _replay_forward(record, mark, dtype)


def _replay_forward(record: Record, mark: str, dtype) -> Iterator[Check]:
    nets = networks(record, dtype)
    tree = params(record, nets, dtype)
    pixels, ids = images(record, "in/images", dtype), jnp.asarray(record["in/text_ids"], jnp.int32)

    @jax.jit
    def run(tree):
        prefix, patches = nets.backbone_tokens(tree, pixels)
        image = nets.image_of(tree, prefix, patches)
        states = nets.text_tower.apply({"params": tree["text_tower"]}, ids)
        text = nets.text(tree, ids)
        scale = jnp.exp(tree["logit_scale"])
        return {
            f"inter{mark}/backbone_cls": prefix[:, 0],
            f"inter{mark}/backbone_storage": prefix[:, 1:],
            f"inter{mark}/backbone_patch": patches,
            f"inter{mark}/text_tokens": states,
            f"out{mark}/head_cls": image.cls,
            f"out{mark}/head_patch": image.patches,
            f"out{mark}/image_features_raw": image.pooled,
            f"out{mark}/text_features_raw": text,
            f"out{mark}/image_features": l2_normalize(image.pooled),
            f"out{mark}/text_features": l2_normalize(text),
            f"out{mark}/logit_scale_exp": scale[None],
            f"out{mark}/image_logits": scale * cosines(image.pooled, text),
            f"out{mark}/gram_normalized": gram_loss(image.patches, patches),
            f"out{mark}/gram_raw": gram_loss(image.patches, patches, normalize=False),
        }

    for name, ours in run(tree).items():
        yield record.check(name, ours)


def replay_loss(record: Record) -> Iterator[Check]:
    """The loss of the whole batch, which is the mean of the recorded ones of its ranks."""
    inputs = [record[f"in/{name}"] for name in ("image", "text", "scale")]

    def run(*given):
        def loss(images_BE, texts_BE, scale):
            return contrastive_loss(images_BE, texts_BE, scale[0])[0]

        value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*map(jnp.asarray, given))
        return value, *grads

    names = ("loss", "grad_image", "grad_text", "grad_scale")
    with jax.enable_x64(True):
        ours = run(*(x.astype(np.float64) for x in inputs))
    for name, value in zip(names, ours, strict=True):
        recorded = record[f"truth64/{name}"]
        # Of a loss near 0 the logits' rounding is left, which are as large as the scale.
        size = max(float(np.max(np.abs(recorded))), float(inputs[2][0]) * 1e-5)
        yield Check(f"truth64/{name}", np.asarray(value), recorded, 1e-9 * size)
    ours = run(*inputs)
    for world in (2, 4):
        yield from _ranks(record, f"out/world{world}", world, ours, scale=float(inputs[2][0]))


def _ranks(record: Record, where: str, world: int, ours, *, scale: float) -> Iterator[Check]:
    """Losses and gradients of ranks, averaged or laid one after another: those of the batch."""

    def of(name):
        return [record[f"{where}/{name}_local/{rank}"] for rank in range(world)]

    recorded = (
        np.mean(of("loss")),
        np.concatenate(of("grad_image")) / world,
        np.concatenate(of("grad_text")) / world,
        np.mean(of("grad_scale"), axis=0),
    )
    names = ("loss", "grad_image", "grad_text", "grad_scale")
    for name, value, theirs in zip(names, ours, recorded, strict=True):
        bound = 2e-6 * (scale if name in ("grad_image", "grad_text") else 1.0)
        yield Check(f"{where}/{name}_local", np.asarray(value), theirs, bound)


def replay_zeroshot(record: Record) -> Iterator[Check]:
    """Classifiers from prompts, and what they say of recorded image features."""
    cfg, names = record.meta["config"], record.meta["config"]["classes"]
    spec = TextSpec(
        vocabulary=49_408,
        context=cfg["context"],
        width=cfg["dim"],
        depth=cfg["layers"],
        num_heads=cfg["heads"],
        outputs=cfg["embed_dim"],
        ffn_ratio=cfg["ffn_ratio"],
    )
    for mark, dtype in (("", np.float32), ("64", np.float64)):
        with jax.enable_x64(dtype == np.float64):
            own = dataclasses.replace(spec, dtype=jnp.dtype(dtype))
            tree = _tower_alone(record, own, dtype)
            states = TextTower(own).apply({"params": tree["text_tower"]}, record["in/ids"])
            texts = TextHead(own).apply({"params": tree["text_head"]}, states, record["in/ids"])
            classes_CE = class_vectors(texts, len(names))
            yield record.check(f"out{mark}/weights", np.asarray(classes_CE).T)
            if mark:
                images_BE = jnp.asarray(record["in/image_features"])
                logits_BC = 100.0 * cosines(images_BE, classes_CE)
                yield record.check("out64/logits100", logits_BC)
                yield record.check("out64/pred", np.argmax(logits_BC, axis=1))


def _tower_alone(record: Record, spec: TextSpec, dtype) -> dict:
    """Our tree of a tower whose table of tokens is recorded in the rows that are used."""
    tensors = {f"text_model.{name}": record[f"w/{name}"] for name in record.under("w/")}
    rows = tensors.pop("text_model.token_embedding_rows")
    table = np.zeros((spec.vocabulary, spec.width))
    table[record["in/used_ids"]] = rows
    tensors["text_model.backbone.token_embedding.weight"] = table
    parts = ("text_tower", "text_head")
    tree = {p: released.to_ours(tensors, p, num_heads=spec.num_heads) for p in parts}
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, dtype)), tree)


def replay_dense(record: Record) -> Iterator[Check]:
    """Words for patches of an image, whole and by windows."""
    cfg = record.meta["config"]
    with jax.enable_x64(True):
        nets = networks(record, np.float64)
        tree = params(record, nets, np.float64)
        patch = nets.backbone.spec.patch_size

        @jax.jit
        def encode(images_BHWC):
            rows, columns = nets.backbone.spec.grid(*images_BHWC.shape[1:3])
            # What was recorded are the backbone's patches: the notebook takes the third of what
            # the vision tower returns, where the vision head's are the second.
            patches = nets.backbone_tokens(tree, images_BHWC)[1]
            return patches.reshape(len(images_BHWC), rows, columns, -1)

        texts = nets.text(tree, jnp.asarray(record["in/text_ids"], jnp.int32))
        classes_CE = class_vectors(patch_half(texts), cfg["classes"])
        yield record.check("out64/text_features", classes_CE)
        image_HWC = jnp.asarray(record["in/image"].transpose(1, 2, 0))
        found = dense.whole(encode, image_HWC, classes_CE, patch)
        yield record.check("out64/whole", np.asarray(found).transpose(2, 0, 1))
        slid = dense.sliding(
            *(encode, image_HWC, classes_CE),
            patch_size=patch,
            side=cfg["side"],
            stride=cfg["stride"],
        )
        yield record.check("out64/slide", np.asarray(slid).transpose(2, 0, 1))
        predicted = dense.labels(slid, tuple(cfg["target"]))
        yield record.check("out64/pred", np.asarray(predicted).astype(np.uint8))


def replay_tokenizer(record: Record) -> Iterator[Check | Skip]:
    """Ids of texts, in two lengths, their number and the way back; needs CLIP's vocabulary."""
    try:
        clip = vocabulary.read(vocabulary.CLIP)
    except ModuleNotFoundError as error:
        yield Skip("out/ids77", str(error))
        return
    texts = json.loads(str(record["in/strings_json"]))
    for context in (77, 32):
        yield record.check(f"out/ids{context}", Tokenizer(clip, context)(texts))
    tokenizer = Tokenizer(clip, 77)
    ids = [tokenizer.encode(text) for text in texts]
    yield record.check("out/n_bpe", np.array([len(row) for row in ids]))
    decoded = json.loads(str(record["out/decoded_json"]))
    same = [tokenizer.decode(row) == text for row, text in zip(ids, decoded, strict=True)]
    yield Check("out/decoded_json", np.array(same), np.ones(len(same), bool), 0.0)


def replay_train(record: Record) -> Iterator[Check]:
    """Five steps of our own TextStep, with one micro-batch and with two."""
    for mark, dtype in (("", np.float32), ("64", np.float64)):
        if f"out{mark}/logit_scale" not in record:
            continue
        with jax.enable_x64(dtype == np.float64):
            yield from _replay_train(record, mark, dtype, accumulate=2 if mark else 1)


def _replay_train(record: Record, mark: str, dtype, *, accumulate: int) -> Iterator[Check]:
    cfg = record.meta["config"]
    nets = networks(record, dtype)
    tree = params(record, nets, dtype)
    objective = TextObjective(
        nets, ("backbone",), scale=1.0, max_scale=100.0, gram=cfg["gram_weight"], group_size=1
    )
    student = {name: part for name, part in tree.items() if name != "backbone"}
    section = ConfigDict(
        {"beta1": cfg["betas"][0], "beta2": cfg["betas"][1], "eps": cfg["eps"], "clip": None}
    )
    optimizer = optim.build(section, multipliers=optim.text_multipliers(student))
    yield from _decay(cfg, student)
    step = TextStep(objective, optimizer, None, accumulate)  # type: ignore[arg-type]
    state = State(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(0),
        student=student,
        ema={"backbone": tree["backbone"]},
        gram=None,
        opt_state=optimizer.init(student),
        centers={},
        bad_steps=jnp.zeros((), jnp.int32),
    )
    update, gradients = jax.jit(step.update), jax.jit(step.gradients)
    losses, scales = [], []
    for number in range(cfg["steps"]):
        pixels = jnp.asarray(record["in/images"][number].transpose(0, 2, 3, 1), dtype)
        ids = jnp.asarray(record["in/text_ids"][number], jnp.int32)
        inputs = TextInputs(pixels, ids, jax.random.split(jax.random.key(0), len(pixels)))
        if mark and number == 0:
            grads, _ = gradients(state.student, state.ema, split_batch(inputs, accumulate))
            yield from _by_name(record, "grad1_64", grads)
        lr = jnp.asarray(record["sched/lr"][number], dtype)
        now = {"lr": lr, "last_layer_lr": lr, "weight_decay": jnp.asarray(cfg["weight_decay"])}
        state, scalars = update(state, inputs, now)
        losses.append(float(scalars["total"]))
        scales.append(float(np.asarray(state.student["logit_scale"])))
        name = f"param{mark}/step{number + 1}"
        if record.under(f"{name}/"):
            yield from _by_name(record, name, state.student)
    recorded = record["out64/loss"] if mark else np.mean(record["out/loss_local"], axis=1)
    bound = 1e-9 if mark else 1e-5
    name = "out64/loss" if mark else "out/loss_local"
    yield Check(name, np.array(losses), recorded.reshape(-1), bound * np.max(recorded))
    recorded = record[f"out{mark}/logit_scale"].reshape(-1)
    yield Check(f"out{mark}/logit_scale", np.array(scales), recorded, 1e-8 if mark else 3e-5)


def _by_name(record: Record, where: str, tree: dict) -> Iterator[Check]:
    """Every recorded tensor under a prefix; the manifest's bounds."""
    ours = released.from_ours(tree)
    for name in record.under(f"{where}/"):
        recorded = record[f"{where}/{name}"]
        bound = record.bound(recorded) if where.startswith("grad") else 1e-8
        bound = bound if recorded.dtype == np.float64 else 3e-5
        yield Check(f"{where}/{name}", ours[name], recorded, bound)


def _decay(cfg: dict, student: dict) -> Iterator[Check]:
    """Which parameters lose weight, by their recorded names."""
    factors = optim.text_multipliers(student).weight_decay
    spread = jax.tree.map(lambda x, factor: np.full(x.shape, factor), student, factors)
    names = [*cfg["decayed"], *cfg["undecayed"]]
    ours = released.from_ours(spread)
    found = np.array([ours[name].max() for name in names])
    yield Check("decayed", found, np.array([float(n in cfg["decayed"]) for n in names]), 0.0)

"""Replay of one recorded guided step, and of the two stages of the published recipes."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import config
from dinojax.augment.masks import mask_indices
from dinojax.augment.views import Views
from dinojax.losses.specs import GuideSpec
from dinojax.models.heads import Head, HeadSpec
from dinojax.models.rope import RopeSpec
from dinojax.models.vit import Vit, VitSpec
from dinojax.train import optim
from dinojax.train.batch_types import Inputs
from dinojax.train.guidance import PART, Guidance
from dinojax.train.objective import LossSpec, Objective
from dinojax.train.ramps import with_ramps
from dinojax.weights import meta
from tests.golden.guided import PROTOTYPES, head_of, their_names
from tests.golden.networks import params_of
from tests.golden.record import Check, Record, Skip

KINDS = {"prototypical": "prototypes"}
RECIPES = {"fmow": "guided_fmow", "hpa": "guided_hpa"}
APPLIED = {"trunk": 2, "patch_embed": None, "early_block": 0}  # block of three, None = embedding
SCALARS = {
    "dino_local_crops_loss": "dino_local",
    "dino_global_crops_loss": "dino_global",
    "sigreg_loss": "sigreg",
    "koleo_loss": "koleo",
    "ibot_loss": "ibot",
}


def objective(record: Record) -> Objective:
    """The recorded networks with the recorded guides."""
    vit, meta_ = record.meta["vit"], record.meta
    dtype = jnp.dtype("float64")
    spec = VitSpec(
        width=vit["embed_dim"],
        depth=vit["depth"],
        num_heads=vit["num_heads"],
        ffn_ratio=vit["ffn_ratio"],
        patch_size=vit["patch_size"],
        channels=vit["in_chans"],
        num_registers=vit["n_storage_tokens"],
        rope=RopeSpec(base=vit["rope_base"], dtype="float64"),
        dtype=dtype,
    )

    def head(sizes) -> Head:
        hidden, bottleneck, prototypes = sizes
        widths = {"hidden": hidden, "bottleneck": bottleneck, "prototypes": prototypes}
        return Head(HeadSpec(spec.width, num_layers=3, dtype=dtype, **widths))

    sigreg = meta_["sigreg"]
    losses = LossSpec(
        **dict(dino=1.0, ibot=1.0, koleo=0.1, student_temperature=0.1, skip_same_crop=True),
        **dict(koleo_neighbors=1, centering="sinkhorn", sinkhorn_iterations=3),
        **dict(center_momentum=0.9, koleo_group=4, sigreg=sigreg["loss_weight"]),
        **dict(sigreg_directions=sigreg["num_slices"], sigreg_points=sigreg["n_knots"]),
    )
    guides = tuple(_guide(row) for row in meta_["config"]["guides"])
    heads = meta_["heads"]
    return Objective(
        Vit(spec),
        head(heads["dino"]),
        head(heads["ibot"]),
        losses,
        None,
        4,
        guidance=Guidance(guides, spec.width, "norms"),
    )


def _guide(row: dict) -> GuideSpec:
    ends = row["target_normalization"]
    return GuideSpec(
        name=row["name"],
        kind=KINDS.get(row["method"], row["method"]),
        reverse=row["grl"],
        weight=row["loss_weight"] / (10 if row["grl"] else 1),
        outputs=row["n_outputs"],
        hidden=tuple(row["hidden_dim"]),
        activation=row["output_activation"],
        momentum=row.get("proto_centroid_momentum", 0.999),
        min_temperature=row.get("proto_phi_min", 0.01),
        low=(ends["output_min"] or [0.0])[0],
        high=(ends["output_max"] or [1.0])[0],
    )


def inputs(record: Record, guided: Guidance) -> Inputs:
    def batch_first(array):
        return array.reshape(-1, 4, *array.shape[1:]).swapaxes(0, 1)

    def crops(name):
        return jnp.asarray(
            batch_first(record[f"in/collated_{name}_crops"]).transpose(0, 1, 3, 4, 2)
        )

    masks_BGP = batch_first(record["in/collated_masks"])
    rows = jnp.asarray(masks_BGP.reshape(-1, masks_BGP.shape[-1]))
    masked_M, _ = mask_indices(rows, num_masked=int(masks_BGP.sum()))
    counts = np.asarray(rows).sum(axis=1)
    weights_M = jnp.asarray(1.0 / counts[np.nonzero(np.asarray(rows))[0]])
    views = Views(
        global_BGHWC=crops("global"),
        local_BLHWC=crops("local"),
        gram_BGHWC=None,
        masks_BGP=jnp.asarray(masks_BGP),
        masked_UM=masked_M[None],
        mask_weights_UM=weights_M[None],
    )
    unused = jax.random.split(jax.random.key(0), 1)
    metadata = {spec.name: jnp.asarray(record[f"in/metadata.{spec.name}"]) for spec in guided.specs}
    return Inputs(views, unused, unused, guided.rows(metadata))


def replay_step(record: Record) -> Iterator[Check | Skip]:
    with jax.enable_x64(True):
        made = objective(record)
        assert made.guidance is not None
        student, teacher = (_params(record, who) for who in ("student", "teacher"))
        for spec in made.guidance.specs:
            if spec.kind != "prototypes":
                head, params = head_of(record, f"w/guide_heads.{spec.name}.")
                student[PART + spec.name] = jax.tree.map(jnp.asarray, params)
        given, told = inputs(record, made.guidance), record.meta["out64"]
        before = "buf0/guide_heads.region."
        centers = {
            f"{PART}region": {
                "centroids": jnp.asarray(record[f"{before}class_centroids"]),
                "temperatures": jnp.asarray(record[f"{before}class_concentration"]),
                "counts": jnp.asarray(record[f"{before}centroid_counts"]),
            }
        }
        now = {"teacher_temperature": record.meta["teacher_temp"], "local_weight": 1.0}
        now |= {"guide": told["guide_lambda"]}
        outputs = jax.jit(made.teacher_outputs)(teacher, None, given)
        targets, moved = made.assign(teacher, outputs, centers, now, given.guides)
        whole = {"directions": jnp.asarray(record["in/sigreg_A"]), "prototypes": centers}
        targets = dataclasses.replace(targets, whole=whole)
        grads, terms = jax.jit(jax.grad(made.loss, has_aux=True))(student, given, targets, now)
        yield from _scalars(record, made.guidance, terms)
        yield from _tensors(record, grads)
        after = "buf1/guide_heads.region."
        for ours, theirs in PROTOTYPES.items():
            theirs = {"counts": "centroid_counts"}.get(
                ours, f"class_{theirs.removeprefix('class_')}"
            )
            yield record.check(after + theirs, moved[f"{PART}region"][ours])
        yield Skip("buf1/guide_heads.gsd", "constants of the recipe, that no step changes")
        yield Skip("buf0/guide_heads", "read, not compared")


def _params(record: Record, who: str) -> dict:
    parts = ("backbone", "dino_head", "ibot_head")
    heads = record.meta["vit"]["num_heads"]
    return {
        part: params_of(record, f"w/{who}.{part}.", num_heads=heads, dtype=np.float64)
        for part in parts
    }


def _scalars(record: Record, guided: Guidance, terms: dict) -> Iterator[Check]:
    told = record.meta["out64"]

    def check(name: str, ours, bound: float = 1e-9) -> Check:
        wanted = np.float64(told[name])
        return Check(name, ours, wanted, bound * max(abs(wanted), 1e-12))

    for theirs, ours in SCALARS.items():
        yield check(theirs, terms[ours])
    added = 0.0
    for spec in guided.specs:
        name, loss = spec.name, terms[f"guide/{spec.name}"]
        yield check(f"guide_{name}_loss", loss)
        yield check(f"guide_{name}_weighted", spec.weight * loss)
        yield check(f"grad_norm/{name}_scale", terms[f"guide_factor/{name}"])
        # Theirs are float32 means; of prototypes over both crops, which ours does not report.
        if spec.kind == "classification":
            yield check(f"guide_{name}_accuracy", terms[f"guide_metric/{name}"], 1e-7)
        elif spec.kind == "regression":
            yield check(f"guide_{name}_mse", terms[f"guide_metric/{name}"])
        added += terms[f"guide_factor/{name}"] * spec.weight * loss
    yield check("returned_total_without_guides", terms["total"] - added)


def _tensors(record: Record, grads: dict) -> Iterator[Check]:
    for part, tree in grads.items():
        if part.startswith(PART):
            name = part.removeprefix(PART)
            kind = "regressor" if name == "gsd" else "classifier"
            for theirs, ours in their_names(kind, tree).items():
                yield record.check(f"grad64/guide_heads.{name}.{theirs}", ours)
            continue
        for theirs, ours in meta.from_ours(tree).items():
            key = f"grad64/student.{part}.{theirs}"
            if key in record:
                yield record.check(key, ours)


# -- two stages ---------------------------------------------------------------------------------


def replay_two_stage(record: Record) -> Iterator[Check | Skip]:
    """Rates that the published recipes apply at the recorded steps, from ours of the same name."""
    for name, found in record.entries["schedule"].items():
        values = config.load(RECIPES[name])
        now = _now(values)
        for row in found["rows"]:
            at, scalars = f"{name}/{row['it']}", now(row["it"])
            yield from _row(at, row, scalars)
    yield from _groups(record)


def _now(values):
    now = optim.schedules(
        values.schedules,
        num_steps=values.num_steps,
        batch_size=values.batch_size,
        freeze_last_layer=values.optim.freeze_last_layer,
        lr_scaling=values.optim.lr_scaling,
    )
    sections = {"optim": values.optim, "guides": values.guides}
    return with_ramps(now, num_steps=values.num_steps, **sections)


def _row(at: str, row: dict, now: dict) -> Iterator[Check]:
    pairs = {
        "lr": "lr",
        "wd": "weight_decay",
        "momentum": "momentum",
        "teacher_temp": "teacher_temperature",
        "last_layer_lr": "last_layer_lr",
        "lambda_": "guide",
    }
    for theirs, ours in pairs.items():
        yield Check(f"{at}/{theirs}", now[ours], row[theirs], 1e-9 * max(abs(row[theirs]), 1e-3))
    wanted = 0.0 if row["frozen"] else row["scale"]
    yield Check(f"{at}/scale", now["trunk"], wanted, 1e-12)
    lr, decay = now["lr"], now["weight_decay"]
    applied = {
        "trunk": (lr * now["trunk"] * 0.9, decay * now["trunk"]),
        "patch_embed": (lr * 0.9**25 * 0.2, decay),
        "head": (lr, decay),
        "last_layer": (now["last_layer_lr"], decay),
    }
    for part, ours in applied.items():
        recorded = np.array(row["applied"][part])
        yield Check(f"{at}/applied/{part}", np.array(ours), recorded, 1e-12)


def _groups(record: Record) -> Iterator[Check | Skip]:
    """Which parameters the published setting of the recipes freezes."""
    for knobs, groups in record.entries["groups"].items():
        if knobs != "fmow":
            yield Skip(f"groups/{knobs}", "ours frees the patch embedding alone")
            continue
        frozen = [name for name, row in groups.items() if row[3]]
        ours = [
            name
            for name in groups
            if name.startswith("backbone.") and not name.startswith("backbone.patch_embed.")
        ]
        yield Check(f"groups/{knobs}/frozen", len(set(frozen) ^ set(ours)), 0, 0.0)

"""Replay of recorded training trajectories through our own step."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dinojax.augment.masks import mask_indices
from dinojax.augment.views import Views
from dinojax.losses.gram import gram_loss
from dinojax.losses.ibot import masked_patches
from dinojax.models.heads import Head, HeadSpec
from dinojax.models.networks import Networks
from dinojax.models.vit import Vit, VitSpec
from dinojax.train import objective as objectives
from dinojax.train import optim
from dinojax.train.batch_types import Inputs
from dinojax.train.objective import GramSpec, LossSpec, Objective
from dinojax.train.state import State
from dinojax.train.step import Step
from dinojax.weights import meta
from tests.golden.networks import DTYPES, params_of, vit_spec
from tests.golden.record import FLOAT32_RELATIVE, TINY, Check, Record, Skip
from tests.support import small

PARTS = ("backbone", "dino_head", "ibot_head")
TERMS = {
    "total_loss": "total",
    "dino_local_crops_loss": "dino_local",
    "dino_global_crops_loss": "dino_global",
    "koleo_loss": "koleo",
    "ibot_loss": "ibot",
    "gram_loss": "gram",
}
BFLOAT16_SHARE = 0.5
# The frozen teacher of train_distill_*: what its configuration file sets, which is not recorded.
FROZEN = {
    "n_storage_tokens": 4,
    "mask_k_bias": True,
    "ffn_layer": "swiglu64",
    "norm_layer": "layernormbf16",
    "untie_global_and_local_cls_norm": True,
}


class Trajectory:
    """A train_* file. A float32 file holds results only: its inputs lie in the float64 one."""

    def __init__(self, record: Record):
        self.record = record
        self.inputs = record
        if not record.under("init/"):
            stem = record.path.name.split("_f32")[0]
            path = record.path.with_name(f"{stem}_f64.npz")
            if not path.exists():
                raise ValueError(f"{record.path.name} takes its inputs from {Path(path).name}.")
            self.inputs = Record(path)
        self.dtype = np.dtype({"f32": "float32", "f64": "float64"}[record.meta["dtype"]])
        cfg = record.meta["cfg"]
        self.cfg, student, gram = cfg, cfg["student"], cfg["gram"]
        self.spec = self._spec("init/student", student)
        frozen = cfg["distillation"]["enabled"]
        self.frozen = self._spec("init/frozen_teacher", {**student, **FROZEN}) if frozen else None
        self.num_images = int(self.inputs["data/0/global_batch_size"])
        self.gram = None
        if gram["use_loss"]:
            clip = "both" if gram["remove_neg"] else "none"
            self.gram = GramSpec(
                teacher="ema" if gram["ema_teacher"] else "frozen",
                normalize=gram["normalized"],
                per_image=gram["img_level"],
                clip="teacher" if gram["remove_only_teacher_neg"] else clip,
                tokens=gram["tokens_used"],
                resize=gram["global_teacher_resize_method"],
                antialias=gram["global_teacher_resize_antialias"],
            )
        self.step = Step(self.objective(), self.optimizer(), view_spec=None)  # type: ignore[arg-type]

    def _spec(self, where: str, cfg: dict) -> VitSpec:
        """Of the backbone recorded under a prefix; its weights tell the sizes."""
        tokens = self.inputs[f"{where}/backbone.cls_token"]
        periods = self.inputs[f"{where}/backbone.rope_embed.periods"]
        blocks = {n.split(".")[2] for n in self.inputs.under(f"{where}/") if ".blocks." in n}
        rope_dtype = {"f64": "float64"}.get(self.record.meta["rope_dtype"])
        return vit_spec(
            {
                **cfg,
                "embed_dim": tokens.shape[-1],
                "depth": len(blocks),
                "layerscale_init": cfg["layerscale"],
                "ffn_ratio": self._ffn_ratio(where, tokens.shape[-1]),
            },
            num_heads=tokens.shape[-1] // (4 * len(periods)),
            dtype=self.dtype,
            rope_dtype=rope_dtype or DTYPES[self.record.meta["rope_dtype"]],
        )

    def _ffn_ratio(self, where: str, width: int) -> float:
        """The reference ignores its ffn_ratio key, so the recorded weights tell."""
        first = f"{where}/backbone.blocks.0.mlp."
        name = "fc1" if f"{first}fc1.weight" in self.inputs else "w1"
        hidden = self.inputs[f"{first}{name}.weight"].shape[0]
        return hidden / width * (1.0 if name == "fc1" else 1.5)

    def networks(self, where: str, spec: VitSpec) -> Networks:
        def head(part: str) -> Head:
            shapes = [
                self.inputs[f"{where}/{part}.{name}.weight"].shape
                for name in ("mlp.0", "mlp.4", "last_layer")
            ]
            (hidden, inputs), (bottleneck, _), (prototypes, _) = shapes
            return Head(
                HeadSpec(
                    inputs=inputs,
                    num_layers=3,
                    hidden=hidden,
                    bottleneck=bottleneck,
                    prototypes=prototypes,
                    dtype=jnp.dtype(self.dtype),
                )
            )

        return Networks(Vit(spec), head("dino_head"), head("ibot_head"))

    def objective(self) -> Objective:
        dino, ibot = self.cfg["dino"], self.cfg["ibot"]
        group = dino["koleo_distributed_loss_group_size"]
        losses = LossSpec(
            dino=dino["loss_weight"],
            ibot=ibot["loss_weight"],
            koleo=dino["koleo_loss_weight"],
            student_temperature=0.1,
            skip_same_crop=dino["global_ignore_diagonal"],
            koleo_neighbors=dino["koleo_topk"],
            centering="sinkhorn",
            sinkhorn_iterations=3,
            center_momentum=0.9,
            koleo_group=group or self.num_images,
        )
        own = self.networks("init/student", self.spec)
        return Objective(
            own.backbone,
            own.dino_head,
            own.ibot_head,
            losses,
            self.gram,
            self.num_images,
            frozen=self.networks("init/frozen_teacher", self.frozen) if self.frozen else None,
        )

    def optimizer(self):
        cfg = self.cfg["optim"]
        factors = optim.multipliers(
            self.params("init/student"),
            depth=self.spec.depth,
            layer_decay=cfg["layerwise_decay"],
            patch_embed_lr=cfg["patch_embed_lr_mult"],
        )
        section = ConfigDict(
            {
                "beta1": cfg["adamw_beta1"],
                "beta2": cfg["adamw_beta2"],
                "eps": 1e-8,
                "clip": cfg["clip_grad"] or None,
            }
        )
        return optim.build(section, multipliers=factors)

    def params(self, where: str, parts=PARTS, spec: VitSpec | None = None) -> dict:
        """{"backbone", ...}: our trees of the parameters recorded under a prefix."""
        heads = (spec or self.spec).num_heads
        return {
            part: params_of(self.inputs, f"{where}/{part}.", num_heads=heads, dtype=self.dtype)
            for part in parts
        }

    def teacher(self) -> dict | None:
        """Parameters of the frozen teacher; None where the ema is the teacher."""
        if self.frozen is None:
            return None
        return self.params("init/frozen_teacher", spec=self.frozen)

    def state(self) -> State:
        student = self.params("init/student")
        gram = None
        if self.gram is not None and self.gram.teacher == "frozen":
            gram = self.params("init/gram_teacher", ["backbone"])["backbone"]
        return State(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key(0),
            student=student,
            ema=self.params("init/ema"),
            gram=gram,
            opt_state=self.step.optimizer.init(student),
            centers={},
            bad_steps=jnp.zeros((), jnp.int32),
        )

    def batch_first(self, array: np.ndarray) -> np.ndarray:
        """[crops * images, ...] as recorded -> [images, crops, ...]."""
        return array.reshape(-1, self.num_images, *array.shape[1:]).swapaxes(0, 1)

    def crops(self, number: int, name: str) -> jax.Array:
        recorded = self.inputs[f"data/{number}/collated_{name}_crops"]
        return jnp.asarray(self.batch_first(recorded).transpose(0, 1, 3, 4, 2), self.dtype)

    def step_inputs(self, number: int) -> Inputs:
        masks_BGP = self.batch_first(self.inputs[f"data/{number}/collated_masks"])
        rows = jnp.asarray(masks_BGP.reshape(-1, masks_BGP.shape[-1]))
        masked_M, weights_M = mask_indices(rows, num_masked=int(masks_BGP.sum()))
        if self.dtype == np.float64:  # the recorded run does not round them
            counts = masks_BGP.reshape(rows.shape).sum(axis=1)
            weights_M = jnp.asarray(1.0 / counts[np.nonzero(np.asarray(rows))[0]])
        with_gram = f"data/{number}/collated_gram_teacher_crops" in self.inputs
        views = Views(
            global_BGHWC=self.crops(number, "global"),
            local_BLHWC=self.crops(number, "local"),
            gram_BGHWC=self.crops(number, "gram_teacher") if with_gram else None,
            masks_BGP=jnp.asarray(masks_BGP),
            masked_UM=masked_M[None],
            mask_weights_UM=weights_M[None],
        )
        unused = jax.random.split(jax.random.key(0), 1)
        return Inputs(views, unused, unused)

    def now(self, number: int) -> dict:
        names = {
            "lr": "sched/lr",
            "last_layer_lr": "sched/ll",
            "weight_decay": "sched/wd",
            "momentum": "sched/mom",
            "teacher_temperature": "sched/temp",
            "local_weight": "loss/dino_local_loss_weight",
            "gram_weight": "loss/gram_loss_weight",
        }
        return {
            ours: jnp.asarray(self.record[theirs][number], self.dtype)
            for ours, theirs in names.items()
            if theirs in self.record
        }

    def check(self, name: str, ours, recorded=None) -> Check:
        """float32 quantities: 3 times the reference's own error, at most 2e-5 relative.

        With RoPE in bfloat16 a change of the weights by 1e-7 already turns some of its roundings
        and moves features by 1e-4, so there the bound is half of what the rounding changes.
        """
        recorded = self.record[name] if recorded is None else np.asarray(recorded)
        if self.record.meta["rope_dtype"] == "bf16":
            exact = self.inputs[name]
            bound = BFLOAT16_SHARE * float(np.max(np.abs(exact - recorded)))
            return Check(name, np.asarray(ours), recorded, bound)
        scale = max(float(np.max(np.abs(recorded), initial=0.0)), TINY)
        if self.dtype == np.float64:
            relative = FLOAT32_RELATIVE if recorded.dtype == np.float32 else 1e-9
            return Check(name, np.asarray(ours), recorded, relative * scale)
        stated = self.inputs.meta["f32_vs_f64_maxabs"]
        own = [3.0 * error for prefix, error in stated.items() if name.startswith(prefix)]
        return Check(name, np.asarray(ours), recorded, min([*own, FLOAT32_RELATIVE * scale]))


@contextlib.contextmanager
def compiled_as_in_runs() -> Iterator[None]:
    """With all optimizations, which tests go without (conftest.py).

    In float32 their order of sums counts: where a gradient is nothing but rounding Adam makes a
    step of it all the same.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def replay_train(record: Record) -> Iterator[Check | Skip]:
    """Losses, gradients, parameters, ema and Adam moments of every recorded step."""
    is_wide = record.meta["dtype"] == "f64"
    with jax.enable_x64(is_wide), contextlib.nullcontext() if is_wide else compiled_as_in_runs():
        run = Trajectory(record)
        state, update, teacher = run.state(), jax.jit(run.step.update), run.teacher()
        yield from _first_step(run, state, teacher or state.ema)
        terms: list[dict] = []
        refresh = run.cfg["gram"]["update_frequency"] if state.gram is not None else None
        for number in range(len(record["sched/lr"])):
            yield from _gram_statistics(run, state, number)
            state, found = update(state, run.step_inputs(number), run.now(number), teacher)
            terms.append(found)
            if refresh and (number + 1) % refresh == 0:
                state = state.replace(gram=state.ema["backbone"])
            yield from _parameters(run, state, number + 1)
        for name in record.under("loss/"):
            if name in TERMS:
                yield run.check(f"loss/{name}", [t[TERMS[name]] for t in terms])
        for part in record.under("grad_norm/"):
            yield run.check(f"grad_norm/{part}", [t[f"grad_norm/{part}"] for t in terms])
        yield from _moments(run, state)


def _parameters(run: Trajectory, state: State, step: int) -> Iterator[Check]:
    trees = {
        f"student/step{step}/": state.student,
        f"student/step{step}_f32/": state.student,
        f"ema/step{step}/": state.ema,
        f"gram_teacher/step{step}/": {"backbone": state.gram},
    }
    for prefix, tree in trees.items():
        if run.record.under(prefix):
            yield from _tensors(run, prefix, tree)


def _tensors(run: Trajectory, prefix: str, tree: dict) -> Iterator[Check]:
    names = {
        f"{part}.{name}": tensor
        for part in tree
        for name, tensor in meta.from_ours(tree[part]).items()
    }
    recorded = set(run.record.under(prefix))
    if recorded != set(names):
        raise ValueError(f"{prefix}: names differ: {sorted(recorded ^ set(names))[:5]}")
    for name, tensor in names.items():
        yield run.check(prefix + name, tensor)


def _first_step(run: Trajectory, state: State, teacher: dict) -> Iterator[Check | Skip]:
    """Gradients before clipping and what flows between the networks, at the first step."""
    step, inputs, now = run.step, run.step_inputs(0), run.now(0)
    parts = jax.tree.map(lambda x: x[None], inputs)
    outputs = jax.jit(step.objective.teacher_outputs)(teacher, state.gram, inputs)
    targets, _ = step.objective.assign(teacher, outputs, {}, now)
    if run.record.under("grad1/"):
        rows = jax.tree.map(lambda x: x[None], dataclasses.replace(targets, columns=None))
        split = dataclasses.replace(rows, columns=targets.columns)
        grads, _ = jax.jit(step.gradients)(state.student, parts, split, now)
        yield from _tensors(run, "grad1/", grads)
    if not run.record.under("inter/"):
        return
    found = {
        "teacher_global/cls_after_head": _crop_first(
            outputs.dino_BGZ @ targets.columns["dino"].kernel_ZK
        ),
        "teacher_global/cls_centered": _crop_first(
            small.dense(targets.dino, targets.columns["dino"])
        ),
        "teacher_global/masked_patch_centered": _patch_order(
            run, small.dense(targets.ibot, targets.columns["ibot"])[0]
        ),
    }
    found |= jax.jit(lambda *both: _features(run, *both, inputs))(state.student, teacher)
    if outputs.gram_BGPD is not None:
        rows = _crop_first(outputs.gram_BGPD)
        found["gram_global/teacher_patches"] = rows.reshape(-1, *rows.shape[2:])
    for name in run.record.under("inter/"):
        if name not in found:
            yield Skip(f"inter/{name}", "no such quantity here")
            continue
        ours = found[name]
        if name.startswith("student_global/masked"):
            ours = _patch_order(run, ours)
        yield run.check(f"inter/{name}", ours)


def _features(run: Trajectory, student: dict, teacher: dict, inputs: Inputs) -> dict:
    objective, views = run.step.objective, inputs.views
    whole, local = objective._student_features(student["backbone"], inputs)
    networks = objective.frozen or objective
    targets = objectives._features(networks.backbone, teacher["backbone"], views.global_BGHWC)
    cls = {
        "teacher_global": targets.cls.reshape(*views.global_BGHWC.shape[:2], -1),
        "student_global": whole.cls.reshape(*views.global_BGHWC.shape[:2], -1),
        "student_local": local.cls.reshape(*views.local_BLHWC.shape[:2], -1),
    }
    found = {f"{name}/cls_pre_head": _crop_first(x) for name, x in cls.items()}
    for name in ("student_global", "student_local"):
        logits = objective.dino_head.apply({"params": student["dino_head"]}, cls[name])
        found[f"{name}/cls_after_head"] = _crop_first(logits)
    masked = masked_patches(whole.patches, views.masks_BGP, views.masked_UM)[0]
    found["student_global/masked_patch_pre_head"] = masked
    found["student_global/masked_patch_after_head"] = objective.ibot_head.apply(
        {"params": student["ibot_head"]}, masked
    )
    rows = _crop_first(
        whole.patches.reshape(*views.global_BGHWC.shape[:2], *whole.patches.shape[1:])
    )
    found["gram_global/student_patches"] = rows.reshape(-1, *rows.shape[2:])
    return found


def _crop_first(x):
    return jnp.swapaxes(x, 0, 1)


def _patch_order(run: Trajectory, rows):
    """Rows of masked patches from our order (images lead) to the recorded one (crops lead)."""
    masks = run.inputs["data/0/collated_masks"]
    crop, image = np.divmod(np.arange(len(masks)), run.num_images)
    ours = image * (len(masks) // run.num_images) + crop  # our row of each recorded row
    row, patch = np.nonzero(masks)
    position = ours[row] * masks.shape[1] + patch
    return np.asarray(rows)[np.argsort(np.argsort(position))]


def _gram_statistics(run: Trajectory, state: State, number: int) -> Iterator[Check]:
    """The statistics on masked and unmasked patches that the reference logs beside its loss."""
    if run.gram is None or not run.record.under("loss/stats_only/"):
        return
    inputs = run.step_inputs(number)
    objective, masks_BGP = run.step.objective, np.asarray(inputs.views.masks_BGP)

    def features(student, ema, gram):
        whole, _ = objective._student_features(student["backbone"], inputs)
        return whole.patches, objective.teacher_outputs(ema, gram, inputs).gram_BGPD

    student, teacher = jax.jit(features)(state.student, state.ema, state.gram)
    width = student.shape[-1]
    for name, chosen in (("masked", masks_BGP), ("unmasked", ~masks_BGP)):
        both = [x.reshape(-1, width)[chosen.reshape(-1)] for x in (student, teacher)]
        value = gram_loss(*both, normalize=run.gram.normalize, per_image=False, clip="none")
        recorded = run.record[f"loss/stats_only/{name}_gram_loss"][number]
        yield run.check(f"loss/stats_only/{name}_gram_loss[{number}]", value, recorded)


def _moments(run: Trajectory, state: State) -> Iterator[Check]:
    adam = state.opt_state
    trees = {"exp_avg": adam.mu, "exp_avg_sq": adam.nu}
    for name in run.record.under("adam/"):
        parameter, moment = name.rsplit("/", 1)
        part, inside = parameter.split(".", 1)
        yield run.check(f"adam/{name}", meta.from_ours(trees[moment][part])[inside])

"""Which output meets which loss. The only file that knows all of them.

The teacher sees whole global crops; the student sees masked global crops and local crops.
In distillation the teacher is another network that does not change, and nothing is hidden from
the student: masks then choose the patches that the iBOT loss compares.
Targets are assigned over the global batch, so nothing here depends on devices or micro-batches.
DINOv3, arXiv:2508.10104, sections 3 and 4.
"""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp
from flax import struct

from dinojax import health
from dinojax.augment.views import Views
from dinojax.losses.dino import dino_loss
from dinojax.losses.gram import gram_loss, resize_patches
from dinojax.losses.ibot import ibot_loss
from dinojax.losses.koleo import koleo_loss
from dinojax.losses.sinkhorn import sinkhorn, softmax_targets, update_center
from dinojax.models.heads import Head
from dinojax.models.vit import Draws, Features, Vit, make_draws


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """The keys of the `losses` section, but for `koleo_group`, which is resolved."""

    dino: float
    ibot: float
    koleo: float
    student_temperature: float
    skip_same_crop: bool
    koleo_neighbors: int
    centering: str
    sinkhorn_iterations: int
    center_momentum: float
    koleo_group: int


@dataclasses.dataclass(frozen=True)
class GramSpec:
    """The keys of the `gram` section."""

    teacher: str
    normalize: bool
    per_image: bool
    clip: str
    tokens: str
    resize: str
    antialias: bool


@struct.dataclass
class Inputs:
    """What one step, or one micro-batch of it, works on. Leading axes: images B or groups U."""

    views: Views
    drop_keys_U: jax.Array
    rope_keys_U: jax.Array


@struct.dataclass
class TeacherOutputs:
    """What the teacher makes of the global crops, before targets are assigned."""

    dino_BGK: jax.Array  # logits of cls
    ibot_UMK: jax.Array  # logits of the patches the student does not see
    gram_BGPD: jax.Array | None  # patches of the gram network, at the student's resolution
    cls_BGD: jax.Array
    health: dict  # of each crop, [B, G]


@struct.dataclass
class Targets:
    """Rows that sum to 1 and the patches to be similar to; no gradient."""

    dino_BGK: jax.Array
    ibot_UMK: jax.Array
    gram_BGPD: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Networks:
    """A backbone and its two heads."""

    backbone: Vit
    dino_head: Head
    ibot_head: Head


@dataclasses.dataclass(frozen=True)
class Objective:
    """The networks and how their outputs become one loss."""

    backbone: Vit
    dino_head: Head
    ibot_head: Head
    losses: LossSpec
    gram: GramSpec | None
    group_size: int
    frozen: Networks | None = None  # the teacher of distillation; None: the ema is the teacher

    # -- the teacher's side ------------------------------------------------------------------

    def teacher_outputs(self, teacher, gram, inputs: Inputs) -> TeacherOutputs:
        """Forward pass of the teacher on unmasked global crops, and of the gram network.

        teacher: parameters of backbone and heads, the ema's or those of the frozen networks;
        gram: of a backbone, or None.
        """
        views, networks = inputs.views, self.frozen or self
        features = _features(networks.backbone, teacher["backbone"], views.global_BGHWC)
        num_crops = views.global_BGHWC.shape[:2]
        shown = (features.cls, features.patches, features.prenorm)
        cls_BGD, *tokens = (x.reshape(*num_crops, *x.shape[1:]) for x in shown)
        per_crop = health.image_health(cls_BGD, *tokens)
        masked_UMD = self._masked(features.patches, views.masked_UM)
        gram_BGPD = None
        if self.gram is not None:
            if self.gram.teacher == "frozen":
                crops = views.global_BGHWC if views.gram_BGHWC is None else views.gram_BGHWC
                features = _features(self.backbone, gram, crops)
            side = views.global_BGHWC.shape[2] // self.backbone.spec.patch_size
            patches = features.patches
            if patches.shape[1] != side * side:
                method, antialias = self.gram.resize, self.gram.antialias
                patches = resize_patches(patches, side, method=method, antialias=antialias)
            gram_BGPD = patches.reshape(*num_crops, *patches.shape[1:])
        return TeacherOutputs(
            dino_BGK=_logits(networks.dino_head, teacher["dino_head"], cls_BGD),
            ibot_UMK=_logits(networks.ibot_head, teacher["ibot_head"], masked_UMD),
            gram_BGPD=gram_BGPD,
            cls_BGD=cls_BGD,
            health=per_crop,
        )

    def assign(self, outputs: TeacherOutputs, centers: dict, now: dict) -> tuple[Targets, dict]:
        """Targets over the whole batch, and the next centers (empty unless centering=softmax)."""
        spec, temperature = self.losses, now["teacher_temperature"]
        logits = {"dino": outputs.dino_BGK, "ibot": outputs.ibot_UMK}
        rows = {name: value.reshape(-1, value.shape[-1]) for name, value in logits.items()}
        if spec.centering == "sinkhorn":
            found = {
                name: sinkhorn(value, temperature, num_iterations=spec.sinkhorn_iterations)
                for name, value in rows.items()
            }
        else:
            found = {
                name: softmax_targets(value, centers[name], temperature)
                for name, value in rows.items()
            }
            centers = {
                name: update_center(centers[name], value, spec.center_momentum)
                for name, value in rows.items()
            }
        shaped = {name: found[name].reshape(value.shape) for name, value in logits.items()}
        targets = Targets(shaped["dino"], shaped["ibot"], outputs.gram_BGPD)
        return jax.lax.stop_gradient((targets, centers))

    def teacher_health(self, outputs: TeacherOutputs, targets: Targets) -> dict:
        """Scalars that show the state of the teacher; both arguments of the whole batch."""
        rows = {"dino": targets.dino_BGK, "ibot": targets.ibot_UMK}
        seen = (outputs.health, outputs.cls_BGD, rows)
        return health.teacher_health(*seen, group_size=self.group_size)

    # -- the student's side ------------------------------------------------------------------

    def loss(self, student, inputs: Inputs, targets: Targets, now: dict):
        """Total loss; its terms (unweighted) and student entropies, means over `inputs`."""
        views, spec = inputs.views, self.losses
        num_images, num_global = views.global_BGHWC.shape[:2]
        whole, local = self._student_features(student["backbone"], inputs)

        cls_BGD = whole.cls.reshape(num_images, num_global, -1)
        cls_BSD = jnp.concatenate(
            [cls_BGD, local.cls.reshape(num_images, -1, cls_BGD.shape[-1])], 1
        )
        logits_BSK = _logits(self.dino_head, student["dino_head"], cls_BSD)
        masked_UMD = self._masked(whole.patches, views.masked_UM)
        ibot_UMK = _logits(self.ibot_head, student["ibot_head"], masked_UMD)

        temperature = spec.student_temperature
        terms = {
            "dino_local": dino_loss(
                logits_BSK[:, num_global:], targets.dino_BGK, temperature=temperature
            ),
            "dino_global": dino_loss(
                logits_BSK[:, :num_global],
                targets.dino_BGK,
                temperature=temperature,
                skip_same_crop=spec.skip_same_crop,
            ),
            "ibot": ibot_loss(
                ibot_UMK.reshape(-1, ibot_UMK.shape[-1]),
                targets.ibot_UMK.reshape(-1, ibot_UMK.shape[-1]),
                views.mask_weights_UM.reshape(-1),
                num_crops=num_images * num_global,
                temperature=temperature,
            ),
            "koleo": koleo_loss(
                _by_crop(cls_BGD, spec.koleo_group), num_neighbors=spec.koleo_neighbors
            ),
        }
        if targets.gram_BGPD is not None:
            patches_BGPD = whole.patches.reshape(targets.gram_BGPD.shape)
            terms["gram"] = self._gram(patches_BGPD, targets.gram_BGPD, views)
        total = self._total(terms, now, num_global, num_local=views.local_BLHWC.shape[1])
        entropies = {
            f"student_entropy/{name}": health.student_entropy(logits, temperature)
            for name, logits in (("dino", logits_BSK), ("ibot", ibot_UMK))
            if logits.size
        }
        return total, {"total": total, **terms, **entropies}

    def _total(self, terms, now, num_global: int, *, num_local: int):
        """The weighted sum: DINO terms by their number of crop pairs, KoLeo once per crop."""
        spec = self.losses
        skipped = num_global if spec.skip_same_crop else 0
        global_pairs, local_pairs = num_global**2 - skipped, num_global * num_local
        pairs = global_pairs + local_pairs
        dino = (
            local_pairs / pairs * now["local_weight"] * terms["dino_local"]
            + global_pairs / pairs * terms["dino_global"]
        )
        total = spec.dino * dino + spec.ibot * terms["ibot"]
        total += spec.koleo * num_global * terms["koleo"]
        if self.gram is not None:
            total += now["gram_weight"] * terms["gram"]
        return total

    def _student_features(self, params, inputs: Inputs):
        views = inputs.views
        sets = [_flat(views.global_BGHWC), _flat(views.local_BLHWC)]
        num_groups = inputs.drop_keys_U.shape[0]
        draws = [
            self.make_draws(inputs, num_sequences=crops.shape[0] // num_groups, tag=tag)
            for tag, crops in enumerate(sets)
        ]
        masks = [None if self.frozen else _flat(views.masks_BGP), None]
        found = self.backbone.apply({"params": params}, sets, masks, draws, train=True)
        return cast(list[Features], found)

    def make_draws(self, inputs: Inputs, *, num_sequences: int, tag: int) -> Draws:
        keys = (inputs.drop_keys_U, inputs.rope_keys_U)
        return make_draws(*keys, self.backbone.spec, num_sequences=num_sequences, tag=tag)

    def _masked(self, patches, masked_UM):
        """Patches [B G, P, D] at the masked positions of each group: [U, M, D]."""
        per_group_UPD = patches.reshape(masked_UM.shape[0], -1, patches.shape[-1])
        return jax.vmap(lambda patches, masked: patches[masked])(per_group_UPD, masked_UM)

    def _gram(self, student_BGPD, teacher_BGPD, views: Views):
        """Gram loss per image, or per group over all, masked or unmasked patches."""
        spec = self.gram
        assert spec is not None
        loss = functools.partial(
            gram_loss, normalize=spec.normalize, per_image=spec.per_image, clip=spec.clip
        )
        if spec.per_image:
            return loss(_flat(student_BGPD), _flat(teacher_BGPD))
        num_groups, width = views.masked_UM.shape[0], student_BGPD.shape[-1]
        both = [x.reshape(num_groups, -1, width) for x in (student_BGPD, teacher_BGPD)]
        if spec.tokens != "all":
            chosen = views.masked_UM
            if spec.tokens == "unmasked":
                masks = views.masks_BGP.reshape(num_groups, -1)
                num_unmasked = masks.shape[1] - chosen.shape[1]
                chosen = jnp.argsort(masks, axis=1, stable=True)[:, :num_unmasked]
            both = [jax.vmap(lambda x, i: x[i])(x, chosen) for x in both]
        return jnp.mean(jax.vmap(loss)(*both))


def _features(backbone: Vit, params, crops_BGHWC) -> Features:
    return cast(Features, backbone.apply({"params": params}, [_flat(crops_BGHWC)])[0])


def _logits(head: Head, params, tokens) -> jax.Array:
    return cast(jax.Array, head.apply({"params": params}, tokens))


def _flat(crops):
    """[B, G, ...] -> [(B G), ...]: one image's crops stay together."""
    return crops.reshape(-1, *crops.shape[2:])


def _by_crop(cls_BGD, group_size: int):
    """[B, G, D] -> [(U G), V, D]: neighbours are sought within one crop number of a group."""
    num_images, num_global, width = cls_BGD.shape
    per_group = cls_BGD.reshape(num_images // group_size, group_size, num_global, width)
    return per_group.swapaxes(1, 2).reshape(-1, group_size, width)

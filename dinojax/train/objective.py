"""Which output meets which loss. The only file that knows all of them.

The teacher sees whole global crops; the student sees masked global crops and local crops.
In distillation the teacher is another network that does not change, and nothing is hidden from
the student: masks then choose the patches that the iBOT loss compares. Its crops may be smaller,
never its grid of patches. A teacher without heads gives its features as targets, which the
student's heads project its own to.
Targets are assigned over the global batch, so nothing here depends on devices or micro-batches.
DINOv3, arXiv:2508.10104, sections 3 and 4.
"""

import dataclasses
import functools
from typing import cast

import jax
import jax.numpy as jnp

from dinojax.augment.views import Views
from dinojax.configs.keys import ALL_TERMS
from dinojax.losses import blockwise
from dinojax.losses.dino import cosine_distances, pair_mean
from dinojax.losses.gram import by_group, gram_loss, resize_patches
from dinojax.losses.ibot import masked_patches, weighted_mean
from dinojax.losses.koleo import by_crop, koleo_loss
from dinojax.losses.specs import GramSpec, LossSpec
from dinojax.models import zoo
from dinojax.models.convnext import ConvNext
from dinojax.models.heads import Head
from dinojax.models.layers import l2_normalize
from dinojax.models.networks import Networks
from dinojax.models.vit import Features, Vit
from dinojax.train import health
from dinojax.train.batch_statistics import BatchStatistics, over_batch
from dinojax.train.batch_types import Inputs, Targets, TeacherFeatures, TeacherOutputs
from dinojax.train.guidance import Guidance


@dataclasses.dataclass(frozen=True)
class Objective:
    """The networks and how their outputs become one loss."""

    backbone: Vit | ConvNext
    dino_head: Head
    ibot_head: Head
    losses: LossSpec
    gram: GramSpec | None
    group_size: int
    frozen: Networks | None = None  # the teacher of distillation; None: the ema is the teacher
    heads_only: bool = False  # no gradient for the backbone, and no time spent on it
    guidance: Guidance | None = None  # what metadata keep in the backbone, or take out of it

    @property
    def guide_heads(self) -> dict:
        """Part of the student -> head, of guides."""
        return {} if self.guidance is None else self.guidance.heads

    @property
    def is_features(self) -> bool:
        """Whether targets are features of a teacher without heads."""
        return self.frozen is not None and self.frozen.dino_head is None

    # -- the teacher's side ------------------------------------------------------------------

    def teacher_outputs(self, teacher, gram, inputs: Inputs) -> TeacherOutputs:
        """Forward pass of the teacher on unmasked global crops, and of the gram network.

        teacher: parameters of backbone and heads, the ema's or those of the frozen networks;
        gram: of a backbone, or None.
        """
        views, networks = inputs.views, self.frozen or self
        features = _features(networks.backbone, teacher["backbone"], views.of_teacher_BGHWC)
        num_crops = views.global_BGHWC.shape[:2]
        shown = (features.cls, features.patches, features.prenorm)
        cls_BGD, *tokens = (x.reshape(*num_crops, *x.shape[1:]) for x in shown)
        per_crop = health.image_health(cls_BGD, *tokens)
        masked_UMD = masked_patches(features.patches, views.masks_BGP, views.masked_UM)
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
            dino_BGZ=_bottleneck(networks.dino_head, teacher.get("dino_head"), cls_BGD),
            ibot_UMZ=_bottleneck(networks.ibot_head, teacher.get("ibot_head"), masked_UMD),
            gram_BGPD=gram_BGPD,
            cls_BGD=cls_BGD,
            health=per_crop,
        )

    def teacher_features(self, outputs: TeacherOutputs) -> TeacherFeatures:
        """Of the whole batch, what a student needs beside the teacher's prototypes."""
        seen = outputs.health, outputs.cls_BGD
        scalars = health.teacher_health(*seen, {}, group_size=self.group_size)
        return TeacherFeatures(outputs.dino_BGZ, outputs.ibot_UMZ, health=scalars, heads={})

    def assign(self, teacher, outputs, centers: dict, now: dict, guides: dict | None = None):
        """(Targets over the whole batch, next centers); teacher: what made the outputs.

        Centers are empty without centering=softmax and without prototypes of guides; guides: the
        rows of `Inputs`, of the whole batch.
        """
        if self.is_features:
            targets = Targets(outputs.dino_BGZ, outputs.ibot_UMZ, None, {})
            return jax.lax.stop_gradient((targets, centers))
        spec, temperature = self.losses, now["teacher_temperature"]
        rows, columns, next_centers = {}, {}, dict(centers)
        for name, head in _heads(self.frozen or self).items():
            tokens = outputs.dino_BGZ if name == "dino" else outputs.ibot_UMZ
            kernel_ZK = _kernel(head, teacher[f"{name}_head"])
            if spec.centering == "sinkhorn":
                made = blockwise.sinkhorn_factors(
                    tokens, kernel_ZK, temperature, num_iterations=spec.sinkhorn_iterations
                )
            else:
                center_K = centers[name]
                made = blockwise.softmax_factors(tokens, kernel_ZK, temperature, center_K=center_K)
                mean_K = blockwise.mean_logits(tokens, kernel_ZK)
                next_centers[name] = center_K + (1 - spec.center_momentum) * (mean_K - center_K)
            rows[name], columns[name] = made
        if self.guidance is not None:
            next_centers = self.guidance.moved(next_centers, outputs.cls_BGD, guides or {})
        targets = Targets(rows["dino"], rows["ibot"], outputs.gram_BGPD, columns)
        return jax.lax.stop_gradient((targets, next_centers))

    def teacher_health(self, outputs: TeacherOutputs | TeacherFeatures, targets: Targets) -> dict:
        """Scalars that show the state of the teacher; both arguments of the whole batch."""
        seen = {}
        heads = {} if self.is_features else _heads(self.frozen or self)
        for name, head in heads.items():
            rows = getattr(targets, name)
            seen[name] = (rows.entropy_BT, rows.largest_BT, rows.first_BT, head.spec.prototypes)
        if isinstance(outputs, TeacherFeatures):
            return outputs.health | health.target_health(seen)
        crops = outputs.health, outputs.cls_BGD
        return health.teacher_health(*crops, seen, group_size=self.group_size)

    # -- the student's side ------------------------------------------------------------------

    @jax.named_scope("losses")
    def loss(self, student, inputs: Inputs, targets: Targets, now: dict):
        """Total loss; its terms (unweighted) and student entropies, means over `inputs`."""
        views, spec = inputs.views, self.losses
        num_images, num_global = views.global_BGHWC.shape[:2]
        held = jax.lax.stop_gradient if self.heads_only else lambda tree: tree
        whole, local = self._student_features(held(student["backbone"]), inputs)

        cls_BGD = whole.cls.reshape(num_images, num_global, -1)
        local_BLD = local.cls.reshape(num_images, -1, cls_BGD.shape[-1])
        cls_BSD = jnp.concatenate([cls_BGD, local_BLD], axis=1)
        masked_UMD = masked_patches(whole.patches, views.masks_BGP, views.masked_UM)
        found = {
            name: self._differences(name, student, tokens, targets)
            for name, tokens in (("dino", cls_BSD), ("ibot", masked_UMD))
        }
        dino_BST, ibot_M = (loss for loss, _ in found.values())
        terms = {
            "dino_local": pair_mean(dino_BST[:, num_global:]),
            "dino_global": pair_mean(
                dino_BST[:, :num_global], skip_same_crop=self._skips_same_crop
            ),
            "ibot": weighted_mean(
                ibot_M.reshape(-1),
                views.mask_weights_UM.reshape(-1),
                num_crops=num_images * num_global,
            ),
            "koleo": koleo_loss(
                by_crop(cls_BGD, spec.koleo_group), num_neighbors=spec.koleo_neighbors
            ),
        }
        statistics, place = self.batch_statistics, {"whole": targets.whole, "now": now}
        own = statistics.of_part(student, cls_BGD, inputs.guides, **place)
        of_batch = over_batch(own, targets.whole)
        if spec.sigreg:
            terms["sigreg"] = statistics.sigreg_loss(of_batch)
        if targets.gram_BGPD is not None:
            patches_BGPD = whole.patches.reshape(targets.gram_BGPD.shape)
            terms["gram"] = self._gram(patches_BGPD, targets.gram_BGPD, views)
        assert terms.keys() <= set(ALL_TERMS), "configs/keys/ names the terms that others watch"
        total = self._total(terms, now, num_global, num_local=views.local_BLHWC.shape[1])
        if self.guidance is not None:
            squares = of_batch.get("squares")
            added = self.guidance.total(student, cls_BGD, inputs.guides, squares=squares, **place)
            total += added[0]
            terms |= added[1]
        for name, (_, entropy) in found.items():
            if entropy.size:
                share = health.entropy_share(entropy, _heads(self)[name].spec.prototypes)
                terms[f"student_entropy/{name}"] = share
        return total, {"total": total, **terms}

    # -- what is no mean over images ---------------------------------------------------------

    @property
    def batch_statistics(self) -> BatchStatistics:
        return BatchStatistics(self.losses, self.dino_head, self.guidance)

    def statistics(self, student, inputs: Inputs, whole: dict, now: dict) -> dict:
        """Those that the loss takes of one micro-batch, by a forward pass of their own."""
        features = self._student_features(student["backbone"], inputs, is_whole=True)[0]
        cls_BGD = features.cls.reshape(*inputs.views.global_BGHWC.shape[:2], -1)
        place = {"whole": whole, "now": now}
        return self.batch_statistics.of_part(student, cls_BGD, inputs.guides, **place)

    @property
    def _skips_same_crop(self) -> bool:
        """A feature is compared with that of the same crop above all, for nothing is hidden."""
        return self.losses.skip_same_crop and not self.is_features

    def _differences(self, name: str, student, tokens, targets: Targets):
        """Of all crops of an image with all its targets, or of each masked patch with its own."""
        head, rows = _heads(self)[name], getattr(targets, name)
        if name == "ibot":
            tokens = tokens.reshape(-1, 1, tokens.shape[-1])
            rows = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), rows)
        params, temperature = student[f"{name}_head"], self.losses.student_temperature
        if self.is_features:
            return cosine_distances(_bottleneck(head, params, tokens), rows), jnp.zeros(0)
        assert targets.columns is not None
        columns = targets.columns[name]
        made = _bottleneck(head, params, tokens), _kernel(head, params)
        return blockwise.cross_entropy(*made, (rows, columns), temperature)

    def _total(self, terms, now, num_global: int, *, num_local: int):
        """The weighted sum: DINO terms by their number of crop pairs, KoLeo once per crop."""
        spec = self.losses
        skipped = num_global if self._skips_same_crop else 0
        global_pairs, local_pairs = num_global**2 - skipped, num_global * num_local
        pairs = global_pairs + local_pairs
        dino = (
            local_pairs / pairs * now["local_weight"] * terms["dino_local"]
            + global_pairs / pairs * terms["dino_global"]
        )
        total = spec.dino * dino + spec.ibot * terms["ibot"]
        total += spec.koleo * num_global * terms["koleo"]
        if spec.sigreg:
            total += spec.sigreg * num_global * terms["sigreg"]
        if self.gram is not None:
            total += now["gram_weight"] * terms["gram"]
        return total

    @jax.named_scope("student")
    def _student_features(self, params, inputs: Inputs, *, is_whole: bool = False):
        """Of the global and of the local crops; is_whole: of the global crops alone."""
        views, keys = inputs.views, (inputs.drop_keys_U, inputs.rope_keys_U)
        sets = [_flat(views.global_BGHWC), _flat(views.local_BLHWC)][: 1 if is_whole else 2]
        draws = [
            zoo.make_draws(
                *keys, self.backbone.spec, num_sequences=len(crops) // len(keys[0]), tag=i
            )
            for i, crops in enumerate(sets)
        ]
        if not self.frozen and isinstance(self.backbone, ConvNext):
            raise ValueError("A ConvNeXt has no tokens to hide: it needs a frozen teacher.")
        masks = [None if self.frozen else _flat(views.masks_BGP), None][: len(sets)]
        found = self.backbone.apply({"params": params}, sets, masks, draws, train=True)
        return cast(list[Features], found)

    def _gram(self, student_BGPD, teacher_BGPD, views: Views):
        """Gram loss per image, or per group over all, masked or unmasked patches."""
        spec = self.gram
        assert spec is not None
        loss = functools.partial(
            gram_loss, normalize=spec.normalize, per_image=spec.per_image, clip=spec.clip
        )
        if spec.per_image:
            return loss(_flat(student_BGPD), _flat(teacher_BGPD))
        both = (student_BGPD, teacher_BGPD)
        masks = views.masks_BGP, views.masked_UM
        return jnp.mean(jax.vmap(loss)(*by_group(both, *masks, tokens=spec.tokens)))


def _features(backbone: Vit | ConvNext, params, crops_BGHWC) -> Features:
    return cast(Features, backbone.apply({"params": params}, [_flat(crops_BGHWC)])[0])


def _heads(networks: Networks | Objective) -> dict[str, Head]:
    return cast(dict[str, Head], {"dino": networks.dino_head, "ibot": networks.ibot_head})


def _bottleneck(head: Head | None, params, tokens) -> jax.Array:
    """Unit vectors: of a head, or without one those of the tokens themselves."""
    if head is None:
        return l2_normalize(tokens).astype(tokens.dtype)
    return cast(jax.Array, head.apply({"params": params}, tokens, method=Head.bottleneck))


def _kernel(head: Head, params) -> jax.Array:
    return cast(jax.Array, head.apply({"params": params}, method=Head.kernel))


def _flat(crops):
    """[B, G, ...] -> [(B G), ...]: one image's crops stay together."""
    return crops.reshape(-1, *crops.shape[2:])

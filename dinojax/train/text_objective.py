"""How images meet texts: the objective of a text stage. Beside objective.py the only file that
knows losses.

The backbone, and the text tower where it is frozen, take no gradient and are no part of the
student. dino.txt, arXiv:2412.16334; DINOv3, arXiv:2508.10104.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from dinojax.losses.contrastive import contrastive_loss
from dinojax.losses.gram import gram_loss
from dinojax.losses.sigmoid import sigmoid_loss
from dinojax.models import vit
from dinojax.models.convnext import ConvNext
from dinojax.models.layers import Named, l2_normalize
from dinojax.models.text_networks import PARTS, TextNetworks, init_params
from dinojax.models.vit import Vit


@struct.dataclass
class TextInputs:
    """What one step, or one micro-batch of it, works on. Leading axes: images B or groups U."""

    images_BHWC: jax.Array  # normalised crops
    tokens_BN: jax.Array  # int32, ids of a caption of each
    drop_keys_U: jax.Array


@struct.dataclass
class PairFeatures:
    """Of every image and its caption; rows of the global batch."""

    images_BE: jax.Array  # unit vectors
    texts_BE: jax.Array
    gram_B: jax.Array  # Gram loss of each image, 0 where it has no weight


@dataclasses.dataclass(frozen=True)
class TextObjective:
    """The networks and how their outputs become one loss."""

    networks: TextNetworks
    frozen: tuple[str, ...]  # parts without a gradient
    scale: float  # that multiplies cosines at first
    max_scale: float
    gram: float  # weight of the Gram loss of the vision head's patches with the backbone's
    group_size: int
    bias: float | None = None  # of logits at first: the sigmoid loss; None = the contrastive one

    @property
    def scalars(self) -> tuple[str, ...]:
        """Parts of the student that the loss takes beside features."""
        return ("logit_scale", *(() if self.bias is None else ("logit_bias",)))

    @property
    def backbone(self) -> Vit | ConvNext:
        return self.networks.backbone

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """(student, frozen parts): random parameters with the names of their axes."""
        params = init_params(self.networks, key, self.scale)
        student = {part: params[part] for part in PARTS if part not in self.frozen}
        if self.bias is not None:
            student["logit_bias"] = Named(jnp.float32(self.bias), ())
        return student, {part: params[part] for part in self.frozen}

    def features(self, student: dict, frozen: dict, inputs: TextInputs) -> PairFeatures:
        """Unit vectors of images and texts; gradients through the student alone."""
        params = {**student, **jax.lax.stop_gradient(frozen)}
        spec = self.networks.vision_head.spec.block
        num_images, num_groups = len(inputs.images_BHWC), len(inputs.drop_keys_U)
        draws = vit.make_draws(
            *(inputs.drop_keys_U, inputs.drop_keys_U, spec),
            num_sequences=num_images // num_groups,
            tag=0,
        )
        prefix, patches = self.networks.backbone_tokens(params, inputs.images_BHWC)
        image = self.networks.image_of(params, prefix, patches, subsets=draws.subsets)
        gram_B = jnp.zeros(num_images)
        if self.gram:
            pairs = image.patches[:, None], patches[:, None]
            gram_B = jax.vmap(gram_loss)(*pairs)
        text_BE = self.networks.text(params, inputs.tokens_BN)
        return PairFeatures(l2_normalize(image.pooled), l2_normalize(text_BE), gram_B)

    def loss(self, scalars: dict, features: PairFeatures) -> tuple[jax.Array, dict]:
        """Total loss and its terms, of the whole batch. scalars: those parts of the student."""
        pair = features.images_BE, features.texts_BE
        scale = jnp.exp(scalars["logit_scale"])
        if self.bias is None:
            name, (total, accuracy) = "contrastive", contrastive_loss(*pair, scale)
        else:
            name, (total, accuracy) = "sigmoid", sigmoid_loss(*pair, scale, scalars["logit_bias"])
        terms = {name: total, "pair_accuracy": accuracy}
        if self.gram:
            terms["gram"] = jnp.mean(features.gram_B)
            total += self.gram * terms["gram"]
        return total, {"total": total, **terms}

"""The networks of text alignment: a frozen backbone and the two sides that meet."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from dinojax.models.convnext import ConvNext
from dinojax.models.layers import Named, l2_normalize
from dinojax.models.text_tower import TextHead, TextTower
from dinojax.models.vision_head import ImageFeatures, VisionHead
from dinojax.models.vit import Features, Vit
from dinojax.ops import rng
from dinojax.sharding import mesh

PARTS = ("backbone", "vision_head", "text_tower", "text_head", "logit_scale")


@dataclasses.dataclass(frozen=True)
class TextNetworks:
    """patch_layer: layer of the backbone that patches and registers come from, 1 = the last.

    cls always comes from the last one, as in the released code. Parameters are a dictionary of
    PARTS; `logit_scale` is the logarithm of what multiplies cosines, a scalar.
    """

    backbone: Vit | ConvNext
    vision_head: VisionHead
    text_tower: TextTower
    text_head: TextHead
    patch_layer: int = 1

    def backbone_tokens(self, params: dict, images_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(cls and registers [B, 1 + R, D], patches [B, P, D]), after the final norm."""
        last = self.backbone.spec.depth - 1
        layers = sorted({last + 1 - self.patch_layer, last})
        found = cast(
            list[Features],
            self.backbone.apply(
                {"params": params["backbone"]}, images_BHWC, layers, method="intermediate"
            ),
        )
        first, end = found[0], found[-1]
        prefix_BRD = jnp.concatenate([end.cls[:, None], first.registers], axis=1)
        return prefix_BRD, first.patches

    def image(self, params: dict, images_BHWC: jax.Array, subsets=None) -> ImageFeatures:
        """Normalised images [B, H, W, C] -> features. subsets: drop path of the vision head."""
        tokens = self.backbone_tokens(params, images_BHWC)
        return self.image_of(params, *tokens, subsets=subsets)

    def image_of(self, params: dict, prefix_BRD, patches_BPD, *, subsets=None) -> ImageFeatures:
        """The same from the backbone's tokens."""
        variables = {"params": params["vision_head"]}
        found = self.vision_head.apply(variables, prefix_BRD, patches_BPD, subsets)
        return cast(ImageFeatures, found)

    def text(self, params: dict, ids_BN: jax.Array) -> jax.Array:
        """Token ids int32 [B, N] -> one vector per text [B, E], not of unit length."""
        x_BND = self.text_tower.apply({"params": params["text_tower"]}, ids_BN)
        found = self.text_head.apply({"params": params["text_head"]}, x_BND, ids_BN)
        return cast(jax.Array, found)


def init_params(networks: TextNetworks, key: jax.Array, scale: float) -> dict[str, Any]:
    """Random parameters of PARTS, with the names of their axes still attached.

    key: of a seed; scale: what multiplies cosines at first.
    """
    keys = jax.random.split(rng.init_key(key), 4)
    spec, text = networks.backbone.spec, networks.text_tower.spec
    pixels = jnp.zeros((1, spec.patch_size, spec.patch_size, spec.channels), spec.dtype)
    token = jnp.zeros((1, 1, spec.width), spec.dtype)
    ids, states = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2, text.width), text.dtype)
    with mesh.off():  # one image is as good as any, and does not divide over devices
        return {
            "backbone": networks.backbone.init(keys[0], [pixels])["params"],
            "vision_head": networks.vision_head.init(keys[1], token, token)["params"],
            "text_tower": networks.text_tower.init(keys[2], ids)["params"],
            "text_head": networks.text_head.init(keys[3], states, ids)["params"],
            "logit_scale": Named(jnp.log(jnp.asarray(scale, jnp.float32)), ()),
        }


def cosines(rows_MD: jax.Array, columns_KD: jax.Array) -> jax.Array:
    """Of every row with every column: [..., M, K], float32 at least."""
    pair = l2_normalize(rows_MD), l2_normalize(columns_KD)
    return jnp.einsum("...md,...kd->...mk", *pair, precision="highest")

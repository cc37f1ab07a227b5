"""The networks of text alignment from the sections of a config."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from dinojax.config import Config, ConfigError
from dinojax.models import zoo
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.text_networks import TextNetworks
from dinojax.models.text_tower import TextHead, TextSpec, TextTower
from dinojax.models.vision_head import VisionHead, VisionHeadSpec
from dinojax.models.vit import Vit

# ((tokens, heads, width of a head), causal) -> name of the attention
Attention = Callable[[tuple[int, int, int], bool], str]


def plain(sizes: tuple[int, int, int], causal: bool) -> str:
    return "plain"


def networks(config: Config, *, num_ids: int, attention: Attention = plain) -> TextNetworks:
    """The networks of a text stage. num_ids: of the vocabulary; attention: chooses for a shape.

    Raises ConfigError for a layer that the backbone does not have, and for attention heads that
    do not divide a width.
    """
    section, dtype = config.text, jnp.dtype(config.precision.compute)
    dtypes = {"dtype": dtype, "reduce": jnp.dtype(config.precision.reduce)}
    common = {**dtypes, "remat": config.model.remat}
    backbone = zoo.backbone(
        config.model, config.rope, channels=config.image.channels, attention="plain", **dtypes
    )
    spec = backbone.spec
    is_conv = isinstance(spec, ConvNextSpec)
    if not 1 <= section.patch_layer <= (1 if is_conv else spec.depth):
        most = (
            "1, for the stages of a ConvNeXt differ in width" if is_conv else f"1 to {spec.depth}"
        )
        raise ConfigError(f"text.patch_layer={section.patch_layer}; use {most}.")
    rows, columns = spec.grid(config.crops.global_size, config.crops.global_size)
    num_tokens = 1 + spec.num_registers + rows * columns
    if not isinstance(spec, ConvNextSpec):
        chosen = attention((num_tokens, spec.num_heads, spec.head_width), False)
        backbone = Vit(dataclasses.replace(spec, attention=chosen))
    own = max(1, spec.width // 64) if isinstance(spec, ConvNextSpec) else spec.num_heads
    heads = section.vision_heads or own
    _check_heads("the backbone's width", spec.width, "text.vision_heads", heads)
    vision = VisionHeadSpec(
        width=spec.width,
        depth=section.vision_depth,
        num_heads=heads,
        outputs=_outputs(section.outputs, spec.width),
        drop_path=section.vision_drop_path,
        pool=section.vision_pool,
        attention=attention((num_tokens, heads, spec.width // heads), False),
        **common,
    )
    _check_heads("text.width", section.width, "text.num_heads", section.num_heads)
    head_width = section.width // section.num_heads
    text = TextSpec(
        vocabulary=num_ids,
        context=section.context,
        width=section.width,
        depth=section.depth,
        num_heads=section.num_heads,
        outputs=vision.features,
        ffn_ratio=section.ffn_ratio,
        pool=section.pool,
        head_depth=section.head_depth,
        attention=attention((section.context, section.num_heads, head_width), True),
        **common,
    )
    sides = VisionHead(vision), TextTower(text), TextHead(text)
    return TextNetworks(backbone, *sides, patch_layer=section.patch_layer)


def _outputs(embedding: int | None, width: int) -> int | None:
    """Channels that cls and patches are projected to; None = they are not."""
    if embedding is not None and embedding % 2:
        raise ConfigError(f"text.outputs={embedding} is odd; half is for cls, half for patches.")
    return None if embedding in (None, 2 * width) else embedding // 2


def _check_heads(what: str, width: int, key: str, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"{what}={width} is not a multiple of {key}={heads}.")

"""Networks of which a plan needs only the shapes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dinojax import config as configs
from dinojax.models import zoo
from dinojax.models.zoo import Spec, module
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout

# Width of the features -> the recipe whose network is meant where none is named.
BY_WIDTH = {384: "vits16", 768: "vitb16", 1024: "vitl16", 4096: "vit7b16"}


def spec_of(recipe: str) -> Spec:
    """The network of a recipe as evaluations compute it, in float32, with plain attention."""
    config = configs.load(recipe)
    return zoo.backbone(
        config.model,
        config.rope,
        channels=config.image.channels,
        attention="plain",
        dtype=jnp.dtype(jnp.float32),
    ).spec


def width_of(spec: Any) -> int:
    return spec.widths[-1] if hasattr(spec, "widths") else spec.width


def abstract_params(spec: Spec, layout: Layout) -> dict:
    """Shapes of its parameters, whole on every device."""
    side = spec.patch_size

    def init():
        pixels = jnp.zeros((1, side, side, spec.channels))
        return nn.meta.unbox(module(spec).init(jax.random.key(0), [pixels])["params"])

    with mesh.off():
        shapes = jax.eval_shape(init)
    place = layout.sharding()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)

"""Parameters of networks: random ones, and their shapes and places without any memory."""

import jax
import jax.numpy as jnp

from dinojax.models.layers import Named
from dinojax.models.networks import HasNetworks
from dinojax.ops import rng
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout


def init_params(networks: HasNetworks, key: jax.Array) -> dict:
    """Random parameters of backbone and heads, with the names of their axes still attached.

    Those of guides too, where the networks have `guide_heads`.

    key: of a seed.
    """
    spec, key_of_seed = networks.backbone.spec, key
    heads = {"dino_head": networks.dino_head, "ibot_head": networks.ibot_head}
    init_keys = jax.random.split(rng.init_key(key), 3)
    pixels = jnp.zeros((1, spec.patch_size, spec.patch_size, spec.channels), spec.dtype)
    token = jnp.zeros((1, spec.width), spec.dtype)
    with mesh.off():  # one image is as good as any, and does not divide over devices
        params = {"backbone": networks.backbone.init(init_keys[0], [pixels])["params"]}
        for (name, head), key in zip(heads.items(), init_keys[1:], strict=True):
            if head is not None:
                params[name] = head.init(key, token)["params"]
        key = rng.stream(rng.init_key(key_of_seed), "guides")
        for number, (name, head) in enumerate(getattr(networks, "guide_heads", {}).items()):
            params[name] = head.init(jax.random.fold_in(key, number), token)["params"]
        return params


def abstract_params(networks: HasNetworks, layout: Layout) -> dict:
    """The same of the parameters of some networks alone."""
    boxed = jax.eval_shape(lambda: init_params(networks, jax.random.key(0)))
    _check(layout, boxed)
    return _placed(layout, boxed)


def _is_box(leaf) -> bool:
    return isinstance(leaf, Named)


def _check(layout: Layout, boxed: dict) -> None:
    named_shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (box.value.shape, box.names)
        for path, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box)
    }
    mesh.check(layout, named_shapes)


def _placed(layout: Layout, boxed):
    def place(leaf):
        names = leaf.names if _is_box(leaf) else ()
        leaf = leaf.value if _is_box(leaf) else leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(*names))

    return jax.tree.map(place, boxed, is_leaf=_is_box)

"""Guides: what metadata of an image pull its cls token towards, or push it away from.

Metadata-guided training, arXiv:2606.05107. Losses are per crop and without a mean, since images
may lack a value: `row_weights` makes the mean over those that have one. Float32 at least.
"""

import jax
import jax.numpy as jnp

MISSING = -1  # class index of an image without a value; of numbers NaN
TINY = 1e-12
VANISHING = 1e-6  # norm below which a guide is left as it is


def scaled_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x to the last bit, with `factor` times its gradient; a negative one reverses it.

    arXiv:1409.7495, section 3.
    """
    fixed = jax.lax.stop_gradient(x)
    return fixed + jnp.asarray(factor, x.dtype) * (x - fixed)


def row_weights(present_B: jax.Array) -> jax.Array:
    """[B]: B / number of images that have a value, for these, else 0; present: bool [B], of all.

    So the mean over images of weight * loss is the mean over those that have a value, and it
    remains a mean of means when a batch is taken in parts.
    """
    present_B = present_B.astype(jnp.float32)
    return present_B * (present_B.shape[0] / jnp.maximum(jnp.sum(present_B), 1.0))


def cross_entropy(logits_BGC: jax.Array, classes_B: jax.Array) -> jax.Array:
    """[B, G]; a missing class counts as the first and has to be weighted with 0."""
    index_BGC = jnp.broadcast_to(
        jnp.maximum(classes_B, 0)[:, None, None], (*logits_BGC.shape[:2], 1)
    )
    log_BGC = jax.nn.log_softmax(_wide(logits_BGC), axis=-1)
    return -jnp.take_along_axis(log_BGC, index_BGC, axis=-1)[..., 0]


def binary_cross_entropy(logits_BGC: jax.Array, are_BC: jax.Array) -> jax.Array:
    """[B, G]: mean over C independent yes-or-no questions; are: 0 or 1."""
    logits_BGC, are_B1C = _wide(logits_BGC), _wide(are_BC)[:, None]
    log_yes, log_no = jax.nn.log_sigmoid(logits_BGC), jax.nn.log_sigmoid(-logits_BGC)
    return -jnp.mean(are_B1C * log_yes + (1.0 - are_B1C) * log_no, axis=-1)


def squared_error(outputs_BGC: jax.Array, values_BC: jax.Array) -> jax.Array:
    """[B, G]: mean over C outputs; a missing value counts as 0 and has to be weighted with 0."""
    values_BC = jnp.nan_to_num(_wide(values_BC), nan=0.0)
    return jnp.mean((_wide(outputs_BGC) - values_BC[:, None]) ** 2, axis=-1)


ACTIVATIONS = {"none": lambda x: x, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


# -- prototypes: means of the teacher's features, one per class, nothing of it learned by gradient


def new_prototypes(key: jax.Array, num_classes: int, width: int, temperature: float) -> dict:
    """{"centroids" [C, D] random unit vectors, "temperatures" [C], "counts" int32 [C] = 0}."""
    drawn_CD = jax.random.normal(key, (num_classes, width))
    return {
        "centroids": _unit(drawn_CD),
        "temperatures": jnp.full((num_classes,), temperature),
        "counts": jnp.zeros((num_classes,), jnp.int32),
    }


def prototype_logits(cls_BGD: jax.Array, prototypes: dict, *, min_temperature: float) -> jax.Array:
    """Cosines with the centroids, each over its class's temperature: [B, G, C]."""
    unit_BGD, unit_CD = _unit(_wide(cls_BGD)), _unit(prototypes["centroids"])
    temperatures_C = jnp.maximum(prototypes["temperatures"], min_temperature)
    cosine_BGC = jnp.einsum(
        "bgd,cd->bgc", unit_BGD, unit_CD.astype(unit_BGD.dtype), precision="highest"
    )
    return cosine_BGC / temperatures_C.astype(cosine_BGC.dtype)[None, None]


def moved_prototypes(
    prototypes: dict, cls_BGD: jax.Array, classes_B: jax.Array, *, momentum: float
) -> dict:
    """After the teacher's cls tokens of a whole batch, one crop number after the other.

    A class seen for the first time takes the mean of its tokens, later ones move towards it by
    1 - momentum; so do temperatures towards the root mean square distance of its tokens (two at
    least) from the centroid as it was. Images without a class count nowhere. No gradient.
    """
    cls_BGD = jax.lax.stop_gradient(_wide(cls_BGD))
    num_classes = prototypes["counts"].shape[0]
    member_BC = (classes_B[:, None] == jnp.arange(num_classes)[None]).astype(cls_BGD.dtype)
    number_C = jnp.sum(member_BC, axis=0)
    share_C = 1.0 / jnp.maximum(number_C, 1.0)
    for crop in range(cls_BGD.shape[1]):
        prototypes = _moved(prototypes, cls_BGD[:, crop], (member_BC, number_C, share_C), momentum)
    return prototypes


def _moved(prototypes: dict, cls_BD: jax.Array, members, momentum: float) -> dict:
    """After one crop of each image."""
    member_BC, number_C, share_C = members
    centroids_CD, temperatures_C = prototypes["centroids"], prototypes["temperatures"]
    unit_BD, before_CD = _unit(cls_BD), _unit(centroids_CD)
    # Products with members instead of scatters, which would collect the rows of all devices.
    sum_CD = jnp.einsum("bc,bd->cd", member_BC, unit_BD, precision="highest")
    own_BD = jnp.einsum("bc,cd->bd", member_BC, before_CD, precision="highest")
    square_B = jnp.sum((unit_BD - own_BD) ** 2, axis=-1)
    spread_C = jnp.sqrt(jnp.einsum("bc,b->c", member_BC, square_B, precision="highest") * share_C)
    mean_CD, seen_C = sum_CD * share_C[:, None], prototypes["counts"] > 0
    mixed_CD = momentum * centroids_CD + (1.0 - momentum) * mean_CD
    moved_CD = jnp.where(seen_C[:, None], mixed_CD, mean_CD)
    wider_C = momentum * temperatures_C + (1.0 - momentum) * spread_C
    return {
        "centroids": jnp.where(number_C[:, None] > 0, moved_CD, centroids_CD),
        "temperatures": jnp.where((number_C >= 2) & seen_C, wider_C, temperatures_C),
        "counts": prototypes["counts"] + number_C.astype(prototypes["counts"].dtype),
    }


# -- how several guides share -----------------------------------------------------------------


def equalising(norms: dict, weights: dict, *, how: str) -> dict:
    """Factor on each guide's weighted loss, from norms of gradients at the cls tokens.

    norms: name -> of the loss times its weight; weights: name -> number. how: `none` gives 1;
    `norms` makes all gradients of equal norm, their geometric mean, so that weights alone move the
    common level (as released); `weights` makes them of equal norm before weights, so that a guide
    of twice the weight pulls twice as hard (what the release's text says). Fewer than two guides
    with a gradient stay as they are.
    """
    if how == "none":
        return {name: jnp.ones(()) for name in norms}
    parts = {
        name: norm / (weights[name] if how == "weights" and weights[name] else 1.0)
        for name, norm in norms.items()
    }
    valid = {name: norm > VANISHING for name, norm in parts.items()}
    count = sum(v.astype(jnp.float32) for v in valid.values())
    logs = sum(jnp.where(valid[name], jnp.log(norm + TINY), 0.0) for name, norm in parts.items())
    target = jnp.exp(logs / jnp.maximum(count, 1.0))
    return {
        name: jax.lax.stop_gradient(
            jnp.where(valid[name] & (count >= 2), target / (norm + 1e-8), 1.0)
        )
        for name, norm in parts.items()
    }


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _unit(x: jax.Array) -> jax.Array:
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, TINY**2))

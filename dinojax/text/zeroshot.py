"""Words as classifiers: a vector per class from prompts, and what they say of images.

Radford et al., arXiv:2103.00020, section 3.1: every prompt's vector gets unit length, those of a
class are averaged, and the mean gets unit length again.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dinojax.models.layers import l2_normalize


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All templates of the first class, then of the next. `{}` in a template is the class.

    Raises ValueError for a template without a place for the class, and without templates.
    """
    if not templates:
        raise ValueError("there are no templates; '{}' alone is the name itself.")
    if lacking := [template for template in templates if "{}" not in template]:
        raise ValueError(f"the template {lacking[0]!r} has no {{}}, where the name goes.")
    return [template.replace("{}", name) for name in names for template in templates]


def class_vectors(texts_NE: Any, num_classes: int) -> jax.Array:
    """Vectors of prompts, class after class, to one unit vector per class: [C, E].

    Raises ValueError if the prompts are no whole number of each class.
    """
    num, width = texts_NE.shape
    if not num_classes or num % num_classes:
        raise ValueError(f"{num} prompts do not divide into {num_classes} classes.")
    texts_CTE = l2_normalize(texts_NE).reshape(num_classes, -1, width)
    return l2_normalize(jnp.mean(texts_CTE, axis=1))


def patch_half(texts_NE: Any) -> Any:
    """The half of texts' vectors that is compared with patches; the first is for cls."""
    return texts_NE[:, texts_NE.shape[1] // 2 :]

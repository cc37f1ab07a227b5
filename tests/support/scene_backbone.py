"""A small backbone of four bands with random weights, and heads on it."""

import jax
import numpy as np
from flax import linen as nn

from dinojax.models.vit import VitSpec
from dinojax.models.zoo import module
from dinojax.tasks import settings
from dinojax.tasks.network import TaskNetwork
from dinojax.weights.load import Backbone
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.report import LoadReport

BANDS, PATCH = 4, 16
PREPROCESSING = Preprocessing(64, 64, "fixed", (0.4,) * BANDS, (0.2,) * BANDS)


SPEC = VitSpec(width=16, depth=1, num_heads=2, patch_size=PATCH, channels=BANDS)


def backbone(spec=SPEC):
    images = np.zeros((1, 64, 64, BANDS), np.float32)
    params = jax.jit(module(spec).init)(jax.random.key(0), [images])["params"]
    params = jax.tree.map(np.asarray, nn.meta.unbox(params))
    return Backbone(spec, params, PREPROCESSING, LoadReport("test", 0, (), (), 0, 0, 1.0, ()))


def linear_head(task, body, *, outputs=8, size=128, batch_size=8):
    """(network, variables of a head of random numbers) over a backbone."""
    values = [f"size={size}", "head=linear", f"num_bins={outputs}", f"batch_size={batch_size}"]
    network = TaskNetwork(task, settings.parse(task, values), body, outputs)
    variables = network.new(jax.random.key(1))
    rng = np.random.default_rng(0)
    return network, jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) ** 2, variables
    )

"""A detector and its backbone, small enough for a test."""

import jax
import numpy as np
from flax import linen as nn

from dinojax.models.vit import VitSpec
from dinojax.models.zoo import module
from dinojax.tasks import settings
from dinojax.tasks.box_data import BoxData, open_boxes_of
from dinojax.weights.load import Backbone
from dinojax.weights.preprocess import assumed
from dinojax.weights.report import LoadReport

SIDE, PATCH = 64, 8
SMALL = {"size": SIDE, "batch_size": 4, "warmup": 2, "save_every": 4, "width": 32, "depth": 1}
SMALL |= {"encoder_depth": 1, "ffn": 64, "queries": 20, "many_queries": 20, "copies": 4}
SMALL |= {"smallest": 16, "windows": 0, "num_boxes": 20}


def random_backbone() -> Backbone:
    """A ViT of four blocks with random weights."""
    spec = VitSpec(width=32, depth=4, num_heads=2, patch_size=PATCH)
    images = np.zeros((1, SIDE, SIDE, 3), np.float32)
    params = jax.jit(module(spec).init)(jax.random.key(0), [images])["params"]
    params = jax.tree.map(np.asarray, nn.meta.unbox(params))
    return Backbone(spec, params, assumed(3)[0], LoadReport("test", 0, (), (), 0, 0, 1.0, ()))


def sets(**changed) -> list[str]:
    """Pairs of --set."""
    return [f"{key}={value}" for key, value in {**SMALL, **changed}.items()]


def opened(path, **changed) -> BoxData:
    own = settings.parse("detect", sets(**changed))
    return open_boxes_of(str(path), own, assumed(3)[0], channels=3, patch_size=PATCH)

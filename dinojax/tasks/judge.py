"""Maps of whole images by sliding windows, and how far they are from the truth."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from dinojax.eval import canopy, depth_metrics, segmentation_metrics, sliding
from dinojax.eval.dense_pixels import resized, short_side
from dinojax.eval.patch_maps import as_seen
from dinojax.ops.interpolate import resize
from dinojax.tasks.box_data import BoxData
from dinojax.tasks.box_judge import judge_boxes
from dinojax.tasks.data import TaskData
from dinojax.tasks.network import TaskNetwork
from dinojax.viz.label_colors import label_colors, side_by_side, value_colors

PICTURES = 4  # images of a sheet


def map_of(network: TaskNetwork, variables: dict[str, Any], pixels_HWC: np.ndarray) -> np.ndarray:
    """Metres float32 [H, W], or classes int64 [H, W], of an image uint8 [H, W, C].

    The short side is resized to the size of training; windows of that size overlap by a third,
    and as many as a batch of training go through the backbone at once.
    """
    own = network.settings
    height, width, _ = pixels_HWC.shape
    size = short_side(height, width, own.size)
    seen = as_seen(network.backbone.preprocessing, resized(pixels_HWC, size))

    def predicted(windows_BhwC):
        found = np.asarray(network.predict(variables, windows_BhwC))
        return found if found.ndim == 4 else found[..., None]

    stride = max(2 * own.size // 3, 1)
    options = {"crop": own.size, "stride": stride, "batch_size": own.batch_size}
    found_hwK = sliding.slide(predicted, seen, **options)
    if network.task == "segment":
        return sliding.merged([sliding.probabilities(found_hwK, (height, width))])
    found_1hwK, whole = jnp.asarray(found_hwK)[None], (height, width)
    return np.asarray(resize(found_1hwK, whole, method="bilinear", antialias=False))[0, :, :, 0]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Values of the images that were judged, and a sheet: image, truth, prediction."""

    values: dict[str, float]
    picture: np.ndarray  # uint8 [H, W, 3]


def judge(network: TaskNetwork, variables: dict[str, Any], data: TaskData | BoxData) -> Judgement:
    """depth: rmse (m), abs_rel, a1 ...; canopy: mae (m), r2, block_r2; segment: miou, accuracy
    (percent); detect: ap, ap50 ... (percent)."""
    if isinstance(data, BoxData):
        return Judgement(*judge_boxes(network, variables, data))
    assert data.val is not None
    pairs, shown = [], []
    for index in range(len(data.val)):
        pixels, stored = data.val.read(index)
        pairs.append((map_of(network, variables, pixels), data.truth(stored)))
        if index < PICTURES:
            shown.append((pixels, *_colours(network, *pairs[-1])))
    measure = {"segment": _segmentation, "depth": _depth, "canopy": _canopy}[network.task]
    return Judgement(measure(network, pairs), side_by_side(shown))


def _segmentation(network: TaskNetwork, pairs) -> dict[str, float]:
    num = network.outputs
    counts = [segmentation_metrics.confusion(found, truth, num) for found, truth in pairs]
    metrics = segmentation_metrics.segmentation_metrics(np.sum(counts, axis=0))
    return {name: 100 * metrics[name] for name in ("miou", "accuracy")}


def _depth(network: TaskNetwork, pairs) -> dict[str, float]:
    own = network.settings
    images = []
    for found, truth in pairs:
        valid = depth_metrics.valid_depth(truth, own.min_depth, own.max_depth)
        found = np.clip(found, own.min_depth, own.max_depth)
        images.append(depth_metrics.depth_metrics(found, truth, valid))
    return depth_metrics.mean_over_images(images)


def _canopy(network: TaskNetwork, pairs) -> dict[str, float]:
    """Of all pixels of all images; block_r2 where all images hold a block."""
    pairs = [(found, np.maximum(truth, 0)) for found, truth in pairs]
    found, truth = (np.concatenate([pair[n].ravel() for pair in pairs]) for n in (0, 1))
    values = {"mae": float(np.mean(np.abs(found - truth))), "r2": canopy.r2(found, truth)}
    if min(min(truth.shape) for _, truth in pairs) >= 53:  # a block and the border
        blocks = [
            np.concatenate([canopy.block_means(pair[n][None]).ravel() for pair in pairs])
            for n in (0, 1)
        ]
        values["block_r2"] = canopy.r2(*blocks)
    return values


def _colours(network: TaskNetwork, found, truth) -> tuple[np.ndarray, np.ndarray]:
    """(truth, prediction) in the same colours."""
    if network.task == "segment":
        return label_colors(truth), label_colors(found)
    known = truth[np.isfinite(truth) & (truth > network.settings.min_depth)]
    low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
    return value_colors(truth, low, high), value_colors(found, low, high)

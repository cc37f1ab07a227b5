"""The table of evaluations. docs/evaluation.md says how to add one: its file, and a row here.

Config sections with their explanations and limits, columns of metrics, report, early stopping,
progress, doctor and the command line read this table. It imports nothing but `row`, and the rows of
evaluations on public sets (suite_sets.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dinojax.eval.row import Row, keys_of
from dinojax.eval.suite_sets import SETS

# Name -> row, in the order in which they are measured.
SUITE: dict[str, Row] = {
    "knn": Row(
        module="dinojax.eval.knn_evaluator",
        title="k-NN",
        says="weighted k-NN on the ema, when labels exist",
        needs="labelled images that vote (knn.bank) and that are classified (knn.query)",
        costs="one forward pass over both",
        prefix="knn/",
        main="knn/{features}",
        section="knn",
        note="Percent right, by features.",
        switch="",
        free=("batch_size", "mosaics", "features"),
        is_watched=True,
    ),
    "mosaics": Row(
        module="dinojax.eval.mosaic",
        title="dense (mosaics)",
        says="which of four images side by side a patch belongs to",
        needs="images; labels are used where there are any",
        costs="one forward pass over 2 x knn.mosaics images",
        prefix="dense/",
        main="dense/mosaic",
        section="knn",
        note="Percent of the patches of mosaics told right (dinojax/eval/mosaic.py).",
        switch="mosaics",
        free=("batch_size", "features"),
        is_watched=True,
    ),
    "zeroshot": Row(
        module="dinojax.eval.zeroshot",
        title="zero-shot",
        says="images of a text stage to the class whose prompts are nearest",
        needs="a text stage, and labelled images (zeroshot.images, or knn.query)",
        costs="one forward pass over them, and over the prompts",
        prefix="zeroshot/",
        main="zeroshot/top1",
        section="zeroshot",
        note="Percent of images whose class has the nearest prompts (docs/text.md).",
        free=("batch_size", "images"),
        better=0,
    ),
    "pairs": Row(
        module="dinojax.eval.pairs",
        title="image-text retrieval",
        says="of every image its captions among all, of every caption its image",
        needs="a text stage, and images with captions (pairs.images)",
        costs="one forward pass over images and captions",
        prefix="pairs/",
        main="pairs/text@1",
        section="pairs",
        note="Percent of images (text@k) and captions (image@k) found among the k nearest.",
        free=("batch_size", "images", "source"),
        better=0,
    ),
    "openvocab": Row(
        module="dinojax.eval.openvocab",
        title="open-vocabulary segmentation",
        says="every pixel to the class whose words its patch is nearest to",
        needs="a text stage, and a folder of images/, maps/ and classes.txt (openvocab.data)",
        costs="a forward pass over every window of every image",
        prefix="openvocab/",
        main="openvocab/miou",
        section="openvocab",
        note="Mean IoU over classes, and pixels that are right, in percent (docs/text.md).",
        free=("data", "images", "labels"),
        better=0,
    ),
    "tokens": Row(
        module="dinojax.eval.tokens",
        title="tokens (cls and patches)",
        says="cosines between tokens of fixed images: whether patches keep their place",
        needs="images (tokens.images), or those of training",
        costs="one forward pass over tokens.num images",
        prefix="tokens/",
        main="tokens/cls_patch",
        section="tokens",
        note="Mean cosine of cls and patches; it rises where dense features degrade.",
        unit="",
        free=("batch_size", "images"),
        better=0,
    ),
    "ridge": Row(
        module="dinojax.eval.ridge_evaluator",
        title="segmentation (ridge)",
        says="segmentation by a linear map in closed form",
        needs="folders of images/ and maps/ to learn from (ridge.train) and to be judged by"
        " (ridge.val)",
        costs="one forward pass over both",
        prefix="ridge/",
        main="ridge/miou",
        section="ridge",
        note="mIoU of a ridge on patches (dinojax/eval/ridge.py); no trained head's mIoU.",
        free=("batch_size",),
    ),
    "segmentation": Row(
        module="dinojax.eval.segmentation_evaluator",
        title="segmentation (linear)",
        says="segmentation by linear heads, the best of a sweep",
        needs="folders of images/ and maps/ to learn from (segmentation.train) and to be judged by"
        " (segmentation.val)",
        costs="segmentation.num_steps x batch_size forward passes",
        prefix="segmentation/",
        main="segmentation/miou",
        section="segmentation",
        note="mIoU of the best linear head of the sweep.",
    ),
    "depth": Row(
        module="dinojax.eval.depth_evaluator",
        title="depth (linear)",
        says="depth by linear heads, the best of a sweep",
        needs="folders of images/ and maps/ of depth to learn from (depth.train) and to be judged"
        " by (depth.val)",
        costs="depth.num_steps x batch_size forward passes",
        prefix="depth/",
        main="depth/rmse",
        section="depth",
        note="RMSE in metres of the best linear head of the sweep; less is better.",
        unit="",
        better=-1,
    ),
    "warps": Row(
        module="dinojax.eval.warps_evaluator",
        title="correspondence (warps)",
        says="patches that find their place in a turned and scaled view",
        needs="images (warps.images), or those of training",
        costs="one forward pass over 2 x warps.num views",
        prefix="warps/",
        main="warps/within1",
        section="warps",
        note="Percent of patches matched within one patch of their place in a warped view.",
        free=("batch_size", "images"),
    ),
    "pan": Row(
        module="dinojax.eval.pan_evaluator",
        title="propagation (pan)",
        says="labels that are followed along a pan over a photograph",
        needs="images (pan.images), or those of training",
        costs="one forward pass over pan.num x frames",
        prefix="pan/",
        main="pan/jf",
        section="pan",
        note="J and F of labels propagated along a synthetic pan.",
        free=("batch_size", "images"),
    ),
    "objects": Row(
        module="dinojax.eval.objects_evaluator",
        title="objects (TokenCut)",
        says="object discovery by the normalised cut of the patches",
        needs="a folder of images/ and boxes.csv (objects.data)",
        costs="one forward pass over its images and an eigenvector for each threshold",
        prefix="objects/",
        main="objects/corloc",
        section="objects",
        note="CorLoc of TokenCut, at the best threshold.",
    ),
    "matches": Row(
        module="dinojax.eval.matches_evaluator",
        title="matches of two images",
        says="matches between two images, as a picture",
        needs="a folder of images (matches.images)",
        costs="two forward passes",
        prefix="matches/",
        main="matches/mutual",
        section="matches",
        note="Percent of patches with a mutual match in the other image.",
        free=("images",),
    ),
    "linear": Row(
        module="dinojax.eval.linear",
        title="linear probe",
        says="linear classifiers on frozen features, the best of a grid",
        needs="labelled images to learn from (knn.bank) and to be judged by (knn.query)",
        costs="one forward pass over both; with linear.augment=True one per image and epoch",
        prefix="linear/",
        main="linear/accuracy",
        section="linear",
        note="Percent right of the head that does best on images held out.",
    ),
    "logreg": Row(
        module="dinojax.eval.logreg",
        title="logistic regression",
        says="logistic regression on frozen features, the best of 45 strengths",
        needs="labelled images to learn from (knn.bank) and to be judged by (knn.query)",
        costs="one forward pass over both, and minutes of the host for 10,000 images",
        prefix="logreg/",
        main="logreg/accuracy",
        section="logreg",
        note="Percent right with the strength that does best on images held out.",
    ),
    "fewshot": Row(
        module="dinojax.eval.fewshot",
        title="few-shot",
        says="ridge regression on a few labelled images of each class",
        needs="labelled images to learn from (knn.bank) and to be judged by (knn.query)",
        costs="one forward pass over both",
        prefix="fewshot/",
        main="fewshot/mean",
        section="fewshot",
        note="Percent right by images per class, averaged over draws.",
    ),
    "retrieval": Row(
        module="dinojax.eval.retrieve",
        title="retrieval",
        says="mean average precision of images of the same class",
        needs="labelled images to search (knn.bank) and to search by (knn.query)",
        costs="one forward pass over both",
        prefix="retrieval/",
        main="retrieval/map",
        section="retrieval",
        note="Mean average precision in percent, and how often the first is right.",
    ),
    **SETS,
}


def sections() -> dict[str, Row]:
    """Sections of the config that evaluations own, each with the row whose file declares it."""
    return {name: row for name, row in SUITE.items() if row.section == name}


def keys() -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted key, its row of KEYS) of all evaluations."""
    for section, row in sections().items():
        for key, fields in keys_of(row.module).items():
            yield f"{section}.{key}", fields


def defaults() -> dict[str, dict[str, Any]]:
    """Section -> key -> default."""
    return {
        section: {key: fields["default"] for key, fields in keys_of(row.module).items()}
        for section, row in sections().items()
    }


def watched(values: Mapping[str, Any]) -> dict[str, Row]:
    """Main column -> row of what an alarm and the doctor judge by, the first that is there."""
    return {row.main_column(values): row for row in SUITE.values() if row.is_watched}


def is_result(column: str) -> bool:
    """Whether a column of metrics.jsonl is of an evaluation."""
    return any(row.owns(column) for row in SUITE.values())

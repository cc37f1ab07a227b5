"""Compares our numbers with recorded ones: `python -m tests.replay_golden FILE...`

One line per quantity: largest absolute and relative error, the bound, ok or FAIL. The exit status
is 1 when a quantity fails, a file is of no known kind, or a file yields no quantity.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # float64 is replayed as well

import numpy as np  # noqa: E402

from tests.golden import (  # noqa: E402
    curation,
    dense,
    formats,
    global_eval,
    guided,
    guided_step,
    losses,
    masks,
    matching,
    networks,
    optim,
    tasks,
    text,
    train,
    video,
)
from tests.golden.record import TINY, Check, Record, Skip  # noqa: E402


class Kind(NamedTuple):
    """How a kind of file is told by the name of an array in it, and replayed."""

    marker: str
    replay: Callable[[Record], Iterator[Check | Skip]]


# File name -> kind. A file of another name is told by its content.
KINDS = {
    r"loss_dino.*\.npz": Kind(r"out/student\d+/ignore[01]", losses.replay_dino),
    r"loss_ibot.*\.npz": Kind(r"in/masks_weight", losses.replay_ibot),
    r"loss_koleo_distributed.*\.npz": Kind(r"in/rank\d+/x", losses.replay_koleo_distributed),
    r"loss_koleo.*\.npz": Kind(r"out/.+_nn", losses.replay_koleo),
    r"loss_gram.*\.npz": Kind(r"out/norm[01]_removeneg.+", losses.replay_gram),
    r"gram_resize.*\.npz": Kind(r"in/.+/teacher_patches", losses.replay_gram_resize),
    r"sinkhorn.*\.npz": Kind(r"out/.+/temp.+/it\d+", losses.replay_sinkhorn),
    r"softmax_centering.*\.npz": Kind(r"out/.+/center1", losses.replay_softmax_centering),
    r"collate.*\.npz": Kind(r".+/collated_masks", masks.replay_collate),
    r"masking_stats.*\.npz": Kind(r".+/counts_B\d+", masks.replay_masking_stats),
    r"vit_.*\.npz": Kind(r"w/patch_embed\.proj\.weight", networks.replay_vit),
    r"convnext_.*\.npz": Kind(r"w/downsample_layers\.0\.0\.weight", networks.replay_convnext),
    r"rope_tables.*\.npz": Kind(r"fp32/periods", networks.replay_rope),
    r"dino_head.*\.npz": Kind(r"w/last_layer\.weight", networks.replay_head),
    r"sigreg.*\.npz": Kind(r".+/in/A", guided.replay_sigreg),
    r"gradient_scaling.*\.npz": Kind(r"out64/y_.+", guided.replay_gradient_scaling),
    r"prototypical.*\.npz": Kind(r"step0/out64/concentration", guided.replay_prototypical),
    r"guide_heads.*\.npz": Kind(r".+/w/classifier.*", guided.replay_guide_heads),
    r"guide_normalisation.*\.npz": Kind(r".+/w/g0/.*", guided.replay_guide_normalisation),
    r"patch_channels.*\.npz": Kind(r"out64/w4_plain", guided.replay_patch_channels),
    r"attention_pooling.*\.npz": Kind(r".+/w/query_token", guided.replay_attention_pooling),
    r"lambda.*\.json": Kind(r"rows", guided.replay_ramp),
    r"train_guided.*\.npz": Kind(r"in/sigreg_A", guided_step.replay_step),
    r"two_stage.*\.json": Kind(r"groups", guided_step.replay_two_stage),
    r"train_.*\.npz": Kind(r"grad_norm/backbone", train.replay_train),
    r"(hf|timm)_vit.*_io\.npz": Kind(r"out/(last_hidden_state|forward.*)", formats.replay_vit),
    r"(hf|timm)_convnext.*_io\.npz": Kind(r"out/(hidden_states/4|pooled)", formats.replay_convnext),
    r"metrics_classification.*\.npz": Kind(r"in/anymatch_target", global_eval.replay_metrics),
    r"metrics_imagenet_c.*\.npz": Kind(r"out/mce_15", global_eval.replay_imagenet_c),
    r"knn_module.*\.npz": Kind(r"out64/topk_sims_\d+", global_eval.replay_knn),
    r"linear_probe.*\.npz": Kind(r"out64/lr_after_last_step", global_eval.replay_probe),
    r"logreg.*\.npz": Kind(r"out64/best_C", global_eval.replay_logistic),
    r"fewshot_lsr.*\.npz": Kind(r"out64/acc_s\d+_l2_.+", global_eval.replay_few_shot),
    r"eval_subsets.*\.npz": Kind(r"in/multilabels", global_eval.replay_subsets),
    r"eval_transforms.*\.npz": Kind(r"in/multiscale_x", global_eval.replay_transforms),
    r"retrieval_revisitop.*\.npz": Kind(r"out64/medium/aps", global_eval.replay_revisited),
    r"retrieval_amstertime.*\.npz": Kind(r"out64/first_column_only", global_eval.replay_amstertime),
    r"retrieval_met.*\.npz": Kind(r"out64/pca_P", global_eval.replay_met),
    r"name_maps.*\.json": Kind(r"(hf|timm)_vit_.+", formats.replay_name_maps),
    r"dinotxt_clip_loss.*\.npz": Kind(r"truth64/grad_scale", text.replay_loss),
    r"dinotxt_forward.*\.npz": Kind(r"out64/head_cls", text.replay_forward),
    r"dinotxt_zeroshot.*\.npz": Kind(r"w/token_embedding_rows", text.replay_zeroshot),
    r"dinotxt_openvocab.*\.npz": Kind(r"out64/slide", text.replay_dense),
    r"dinotxt_tokenizer.*\.npz": Kind(r"out/n_bpe", text.replay_tokenizer),
    r"dinotxt_train.*\.npz": Kind(r"grad1_64/logit_scale", text.replay_train),
    r"schedules.*\.json": Kind(r".+/world\d+", optim.replay_schedules),
    r"param_groups.*\.json": Kind(r".+/decay[\d.]+", optim.replay_param_groups),
}
for module in (curation, dense, matching, tasks, video):
    KINDS |= {name: Kind(*row) for name, row in module.KINDS.items()}


# Recorded inputs, which a replay reads and does not compare.
GIVEN = ("in/", "in2/", "w/", "ref_w/", "init/", "data/", "sched/")


def find_kind(record: Record) -> Kind:
    """The kind of a file, by its name or else by its content.

    Raises ValueError, with the kinds there are, when none or several fit.
    """
    for pattern, kind in KINDS.items():
        if re.fullmatch(pattern, record.path.name):
            return kind
    fitting = {
        pattern: kind
        for pattern, kind in KINDS.items()
        if any(re.fullmatch(kind.marker, name) for name in record.entries)
    }
    if len(fitting) != 1:
        raise ValueError(
            f"{record.path}: {len(fitting)} kinds of recording fit its name and content; the kinds"
            f" are {', '.join(KINDS)}."
        )
    return next(iter(fitting.values()))


def errors(check: Check) -> tuple[float, float, bool]:
    """Largest absolute and relative error of a quantity, and whether it is within the bound."""
    ours, recorded = np.asarray(check.ours), np.asarray(check.recorded)
    if ours.shape != recorded.shape:
        return np.inf, np.inf, False
    wide_ours, wide = ours.astype(np.float64), recorded.astype(np.float64)
    error = np.abs(wide_ours - wide)
    if not error.size:
        return 0.0, 0.0, True
    # A bound for each element asks for the relative error of each; else of the largest.
    size = np.abs(wide) if np.ndim(check.bound) else np.max(np.abs(wide))
    relative = error / np.maximum(size, TINY)
    return float(np.max(error)), float(np.max(relative)), bool(np.all(error <= check.bound))


def replay(path: str | Path) -> Iterable[tuple[str, bool]]:
    """Lines to print for one file, each with whether it is a failure.

    A file of weights is replayed through the outputs that were recorded with it.
    """
    record = Record(formats.outputs_of(Path(path)))
    kind = find_kind(record)
    count, seen = 0, set()
    for item in kind.replay(record):
        seen.add(item.quantity)
        if isinstance(item, Skip):
            yield f"{record.path.name} {item.quantity}: skipped, {item.reason}", False
            continue
        count += 1
        absolute, relative, ok = errors(item)
        yield (
            f"{record.path.name} {item.quantity}: abs {absolute:.2e} rel {relative:.2e}"
            f" bound {float(np.max(item.bound)):.2e} {'ok' if ok else 'FAIL'}",
            not ok,
        )
    covered = GIVEN + tuple(f"{quantity}/" for quantity in seen)
    left = [
        n
        for n in record.entries
        if n not in seen and not n.startswith(covered) and not re.match(r"\w[\w.-]*/(in|w)/", n)
    ]
    if left and record.path.suffix == ".npz":
        yield f"{record.path.name}: not compared: {', '.join(left)}", False
    if not count:
        yield f"{record.path.name}: no quantity was compared FAIL", True


def main(paths: list[str]) -> int:
    if not paths:
        print("usage: python -m tests.replay_golden FILE...")
        return 1
    failures = 0
    for path in paths:
        try:
            for line, failed in replay(path):
                print(line)
                failures += failed
        except (OSError, ValueError, KeyError) as error:
            print(f"{path}: {type(error).__name__}: {error} FAIL")
            failures += 1
    print(f"{len(paths)} files, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

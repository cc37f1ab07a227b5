"""Evaluation by linear classifiers on frozen features, many settings in one program (heads.py).

Three published protocols and a quick one: DINOv3's paper (arXiv:2508.10104, appendix D.7) takes the
cls token, 15 learning rates and 2 weight decays over 10 epochs; its released evaluation puts the
mean of the patches beside it, 13 learning rates by batch size over 12,500 steps; DINOv2's
(arXiv:2304.07193) tries the last block and the last four, with the mean and without: 52 heads. The
quick one learns from features that are extracted once, without augmentation, which is another
number and never to be set beside theirs.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import grain
import jax
import numpy as np

from dinojax.data.order import image_index
from dinojax.data.quarantine import Skipped, note_skipped
from dinojax.distributed import process_group
from dinojax.eval import heads, subsets
from dinojax.eval.augmented import TrainingBatches
from dinojax.eval.contract import Measured, Setting
from dinojax.eval.heads import Head, Training
from dinojax.eval.labelled import LabelledProbe, Split
from dinojax.eval.logreg import judged
from dinojax.eval.network import Network
from dinojax.sharding import batch, mesh

KEYS = {
    "every": {
        "default": None,
        "says": "steps; also at step 0 and at the end; None = never; [ours]",
        "optional": "int",
        "limits": (1, None),
    },
    "augment": {
        "default": False,
        "says": "a forward pass per step on random crops [P]; False = features once, quick; [ours]",
    },
    "blocks": {
        "default": (1,),
        "says": "how many of the last blocks give their cls tokens, each a set of heads; [R]",
        "many": "int",
        "limits": (1, 1000),
    },
    "mean": {
        "default": "both",
        "says": "of the last patches beside them: with [R] | without [P] | both (more heads)",
        "choices": ("with", "without", "both"),
    },
    "lrs": {
        "default": (1e-3, 1e-2, 1e-1, 1.0),
        "says": "learning rates, a head each; [ours]",
        "many": "float",
        "limits": (0, None),
    },
    "weight_decays": {
        "default": (0.0,),
        "says": "a head each for every learning rate; [R]",
        "many": "float",
        "limits": (0, None),
    },
    "scale_lr": {"default": False, "says": "learning rates are per 256 images of a batch; [R]"},
    "optimizer": {"default": "sgd", "says": "sgd [P] | adamw", "choices": ("sgd", "adamw")},
    "batch_size": {
        "default": 256,
        "says": "images per step over all devices; 1024 in papers; [ours]",
        "limits": (1, 1_048_576),
    },
    "num_steps": {"default": 1000, "says": "of training; [ours]", "limits": (1, None)},
    "epochs": {
        "default": None,
        "says": "in place of num_steps; None = num_steps counts; [P] 10",
        "optional": "float",
        "limits": (1e-6, None),
    },
    "hold_out": {
        "default": 0.1,
        "says": "share of each class that chooses the head; 0 = the judged images do; [ours]",
        "limits": (0, 0.999999),
    },
    "seed": {"default": 0, "says": "of starts, order and crops; [ours]", "limits": (0, None)},
}
PROTOCOLS = {
    "paper": {
        "augment": True,
        "blocks": (1,),
        "mean": "without",
        # fmt: off
        "lrs": (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
        # fmt: on
        "weight_decays": (0.0, 1e-5),
        "scale_lr": False,
        "batch_size": 1024,
        "epochs": 10.0,
        "hold_out": 0.0,
    },
    "released": {
        "augment": True,
        "blocks": (1,),
        "mean": "with",
        # fmt: off
        "lrs": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        # fmt: on
        "weight_decays": (0.0,),
        "scale_lr": True,
        "batch_size": 1024,
        "num_steps": 12_500,
        "hold_out": 0.0,
    },
    "dinov2": {
        "augment": True,
        "blocks": (1, 4),
        "mean": "both",
        # fmt: off
        "lrs": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        # fmt: on
        "weight_decays": (0.0,),
        "scale_lr": True,
        "batch_size": 1024,
        "num_steps": 12_500,
        "hold_out": 0.0,
    },
    "quick": {"augment": False},
}


@dataclasses.dataclass(frozen=True)
class LinearProbe(LabelledProbe):
    """Fields are the keys of the section `linear`."""

    augment: bool
    families: tuple[tuple[str, ...], ...]  # outputs that are put side by side, per set of heads
    heads: tuple[Head, ...]  # which name their family by joining its outputs
    optimizer: str
    batch_size: int
    num_steps: int
    epochs: float | None
    hold_out: float
    seed: int

    def measure(self, network: Network) -> Measured:
        """Columns linear/accuracy, linear/top5 and linear/class_accuracy of the chosen head."""
        labels_N = self.images.labels[0]
        fitted, held = np.arange(len(labels_N)), np.arange(0)
        if self.hold_out:
            fitted, held = subsets.hold_out(labels_N, self.hold_out, self.seed)
        test = self.images.test_split(network, self._outputs, what="the linear probe")
        train = None if self.augment and not len(held) else self._extracted(network)
        training = Training(self._steps(len(fitted)), self.optimizer)
        if self.augment:
            batches = self._crops(network, labels_N, fitted, training.num_steps)
        else:
            assert train is not None
            fitted, held = (np.flatnonzero(np.isin(train.kept, part)) for part in (fitted, held))
            batches = self._rows(train, fitted, training.num_steps)
        params = self._train(batches, training)
        chooser = test if train is None or not len(held) else _part(train, held, self.augment)
        best, share = self._best(params, chooser)
        told = (
            f"{len(fitted)} images to learn from, {training.num_steps} steps, best of "
            f"{len(self.heads)} heads on {len(chooser.labels)} "
            f"{'judged' if chooser is test else 'held-out'} images ({100 * share:.1f} %): "
            f"{self.heads[best].features} at lr {self.heads[best].lr:.3g}"
        )
        return judged("linear", self._scores(params, best, test), self.images.answers(test), told)

    @property
    def _outputs(self) -> tuple[str, ...]:
        """What is asked of the network. Of the plain ones both, as others ask for."""
        names = dict.fromkeys(name for family in self.families for name in family)
        return ("cls", "mean") if set(names) <= {"cls", "mean"} else tuple(names)

    def _steps(self, num_images: int) -> int:
        if self.epochs is None:
            return self.num_steps
        return math.ceil(self.epochs * num_images / self.batch_size)

    def _extracted(self, network: Network) -> Split:
        return self.images.extract(network, self._outputs, what="the linear probe")[0]

    def _rows(self, train: Split, fitted: np.ndarray, num_steps: int) -> Iterator:
        """Batches of features that are known."""
        features = {"+".join(names): train.side_by_side(names) for names in self.families}
        for step in range(num_steps):
            positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            rows = fitted[image_index(self.seed, positions, len(fitted))]
            yield {name: x[rows] for name, x in features.items()}, train.labels[rows]

    def _crops(self, network: Network, labels_N, fitted: np.ndarray, num_steps: int) -> Iterator:
        """Batches of features of random crops, one forward pass each."""
        own = frozenset(batch.own_rows(self.batch_size))
        images, size = self.images, self.batch_size
        read = TrainingBatches(
            images.train, labels_N, fitted, images.transform, size, self.seed, own
        )
        stream = grain.MapDataset.range(num_steps).map(read)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        bad: dict[int, Skipped] = {}
        for images_BHWC, labels_B, faults in stream.to_iter_dataset(options):
            bad |= {fault.id: Skipped("probe", fault.id, fault.reason) for fault in faults}
            found = network.outputs(images_BHWC, self._outputs)
            features = {name: process_group.fetch(x) for name, x in found.items()}
            if (layout := mesh.active()) is not None:  # replaced ones are known where they are read
                labels_B = process_group.fetch(
                    jax.numpy.asarray(batch.from_own_rows(layout, labels_B))
                )
            side_by_side = {
                "+".join(names): np.concatenate([features[name] for name in names], axis=1)
                for names in self.families
            }
            yield side_by_side, labels_B
        note_skipped(
            list(bad.values()),
            what="the linear probe with others in place of some images",
            num_read=len(fitted),
            max_share=self.images.max_bad_share,
            path=self.images.bad_list if process_group.current().is_main else None,
        )

    def _train(self, batches: Iterator, training: Training):
        state = None
        update = functools.partial(heads.update, heads=self.heads, training=training)
        step = jax.jit(update, donate_argnums=0)
        for features, labels_B in batches:
            if state is None:
                widths = {name: x.shape[1] for name, x in features.items()}
                start = heads.init(self.heads, widths, self.images.num_classes, seed=self.seed)
                state = heads.spread(heads.start(start, training))
            state, _ = step(state, features, labels_B)
        assert state is not None, "there is at least one step"
        return jax.tree.map(process_group.fetch, state["params"])

    def _best(self, params, split: Split) -> tuple[int, float]:
        """(number of the first head with the highest accuracy, that accuracy)."""
        features = {"+".join(names): split.side_by_side(names) for names in self.families}
        shares = heads.accuracies(params, self.heads, features, split.labels)
        best = int(np.argmax(shares))
        return best, float(shares[best])

    def _scores(self, params, number: int, split: Split) -> np.ndarray:
        """Logits [N, C] of one head."""
        name = self.heads[number].features
        place = heads.grouped(self.heads)[name].index(number)
        kernel, bias = (params[name][part][place] for part in ("kernel", "bias"))
        return split.side_by_side(tuple(name.split("+"))) @ kernel + bias


def _part(train: Split, held: np.ndarray, by_index: bool) -> Split:
    rows = np.flatnonzero(np.isin(train.kept, held)) if by_index else held
    outputs = {name: x[rows] for name, x in train.outputs.items()}
    return Split(outputs, train.labels[rows], train.kept[rows])


def families(blocks: tuple[int, ...], mean: str) -> tuple[tuple[str, ...], ...]:
    """Outputs per set of heads: cls tokens of the last blocks, oldest first, perhaps the mean."""
    found = []
    for count in blocks:
        cls = tuple("cls" if back == 1 else f"cls@-{back}" for back in range(count, 0, -1))
        found += [cls] if mean != "with" else []
        found += [(*cls, "mean")] if mean != "without" else []
    return tuple(found)


def build(section, setting: Setting) -> LinearProbe | None:
    """The row `linear` of the table; None without labels."""
    read = families(tuple(int(count) for count in section.blocks), section.mean)
    scale = section.batch_size / 256 if section.scale_lr else 1.0
    grid = tuple(
        Head("+".join(names), float(lr) * scale, float(decay))
        for names in read
        for lr in section.lrs
        for decay in section.weight_decays
    )
    return LinearProbe.of(
        setting,
        augment=section.augment,
        families=read,
        heads=grid,
        optimizer=section.optimizer,
        batch_size=section.batch_size,
        num_steps=section.num_steps,
        epochs=section.epochs,
        hold_out=section.hold_out,
        seed=section.seed,
    )

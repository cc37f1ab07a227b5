"""Replays of recorded mask counts and of the collation of masks."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from dinojax.augment.masks import mask_counts, mask_indices
from dinojax.configs.base import get_config
from tests.golden.record import Check, Record, Skip


def replay_collate(record: Record) -> Iterator[Check | Skip]:
    for case in dict.fromkeys(name.split("/")[0] for name in record.entries):
        masks = record[f"{case}/collated_masks"]
        num_masked = int(record[f"{case}/n_masked_patches"][0])
        indices, weights = mask_indices(jnp.asarray(masks), num_masked=num_masked)
        yield record.check(f"{case}/mask_indices_list", indices)
        yield record.check(f"{case}/masks_weight", weights)
        rows, patches = masks.shape
        section = get_config().masks
        counts = mask_counts(rows, patches, rate=section.rate, ratio=section.ratio)
        yield record.check(f"{case}/upperbound", sum(counts))
        found = np.sort(masks.sum(axis=1))[rows - len(counts) :]
        yield Check(f"{case}/hidden patches of each masked crop", np.sort(counts), found, 0)
        for name in record.under(f"{case}/collated_"):
            if name.endswith("_value"):
                yield Skip(f"{case}/collated_{name}", "crops keep a crop axis here, no row order")


def replay_masking_stats(record: Record) -> Iterator[Check | Skip]:
    """Counts are exact; the rest are frequencies of another random generator."""
    section = get_config().masks
    for name in record.entries:
        grid, quantity = name.split("/", 1)
        if not quantity.startswith("counts_B"):
            yield Skip(name, "a frequency over random draws, compared in the tests of masks")
            continue
        rows = int(quantity.removeprefix("counts_B"))
        patches = int(np.prod([int(side) for side in grid.split("x")]))
        counts = mask_counts(rows, patches, rate=section.rate, ratio=section.ratio)
        padded = np.array([*counts, *[0] * (rows - len(counts))])
        # In the order before rows are shuffled; unmasked rows last.
        yield record.check(name, padded)

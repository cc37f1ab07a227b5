"""Cosines between tokens: values that are known, and what lies between them."""

import numpy as np
import pytest

from dinojax.eval import tokens
from dinojax.eval.network import Network
from tests.support.dense import changed, section, with_images

GRID = (3, 4)
ONE = np.array([3.0, 4.0, 0.0])


def test_patches_that_are_all_cls_have_rank_one_and_no_place():
    found = tokens.of_image(ONE, np.tile(2 * ONE, (12, 1)), GRID)
    want = {"cls_patch": 1, "patch_patch": 1, "rank": 1, "neighbours": 1, "locality": 0}
    assert {name: found[name] for name in want} == pytest.approx(want)
    assert found["top_channel"] == pytest.approx(16 / 25)


def test_orthonormal_patches_have_full_rank_and_their_mean_is_equally_near_to_all():
    patches = np.eye(16)[:12]
    found = tokens.of_image(patches.mean(axis=0) * np.sqrt(12), patches, GRID)
    assert found["cls_patch"] == pytest.approx(12**-0.5)
    assert found["patch_patch"] == pytest.approx(0) and found["rank"] == pytest.approx(12)


def test_between_the_two_everything_changes_one_way():
    cls = np.full(12, 12**-0.5)
    rows = [
        tokens.of_image(cls, (1 - share) * np.eye(12) + share * cls, GRID)
        for share in np.linspace(0, 1, 9)
    ]
    for name, sign in {"cls_patch": 1, "patch_patch": 1, "rank": -1}.items():
        assert np.all(sign * np.diff([row[name] for row in rows]) > 0), name


def test_locality_is_what_neighbours_share_beyond_all_pairs():
    column = np.repeat(np.eye(4), 3, axis=0).reshape(4, 3, 4).swapaxes(0, 1).reshape(12, 4)
    found = tokens.of_image(np.ones(4), column, GRID)  # 8 of 17 neighbours are equal
    assert found["neighbours"] == pytest.approx(8 / 17)
    assert found["locality"] == pytest.approx(8 / 17 - 12 * 2 / (12 * 11))
    assert "locality" not in tokens.of_image(np.ones(4), column, None)
    assert np.isfinite(list(tokens.of_image(np.zeros(4), 0 * column, GRID).values())).all()


def test_rankme_counts_directions_of_cls():
    assert tokens.rankme(np.eye(5)) == pytest.approx(5)
    assert tokens.rankme(np.outer(np.arange(1, 6), ONE)) == pytest.approx(1)


def test_the_row_is_the_same_for_every_size_of_batch(tmp_path):
    def embed(params, images_BHWC):
        cells = np.asarray(images_BHWC).reshape(len(images_BHWC), 16, -1, 3).mean(axis=2)
        return cells.mean(axis=1), cells.mean(axis=1), cells

    found = [
        tokens.build(changed(section(tokens), batch_size=size), with_images())
        .measure(Network(embed, {}))
        .values
        for size in (2, 3)
    ]
    assert found[0] == pytest.approx(found[1]) and found[0]["tokens/cls_patch"] < 1
    assert {"tokens/locality", "tokens/rankme"} <= found[0].keys()

"""k-NN of whole sources: images that cannot be read are left out, counted and listed."""

import logging

import numpy as np
import pytest
from PIL import Image

from dinojax.data.folder import folder
from dinojax.data.quarantine import KNN_FILE, read_list
from dinojax.eval.features import EvalTransform
from dinojax.eval.knn_evaluator import Knn


def stored(root, bad=()):
    """Folder of two classes, dark and light, of six images each; those of `bad` are damaged."""
    for label, value in (("dark", 20), ("light", 220)):
        (root / label).mkdir(parents=True)
        for number in range(6):
            path = root / label / f"{number}.png"
            noise = np.random.default_rng(number).integers(0, 20, (8, 8, 3))
            Image.fromarray((noise + value).astype(np.uint8)).save(path)
            if (label, number) in bad:
                path.write_bytes(path.read_bytes()[:50])
    return folder(path=str(root), channels=3)


def knn(tmp_path, bank_bad=(), query_bad=()):
    transform = EvalTransform(8, 8, "fixed", (0.5,) * 3, (0.5,) * 3)
    bank = stored(tmp_path / "bank", bank_bad)
    query = stored(tmp_path / "query", query_bad)
    settings = dict(features="cls", neighbors=2, temperature=0.07, batch_size=5, max_bad_share=0.1)
    return Knn(bank, query, transform, **settings, bad_list=tmp_path / KNN_FILE)


def embed(params, images_BHWC):
    mean_B = images_BHWC.mean(axis=(1, 2, 3))
    features_BD = np.stack([mean_B, np.abs(mean_B) + 1], axis=1)
    return features_BD, features_BD, None


def test_images_that_cannot_be_read_are_left_out_counted_and_listed_once(tmp_path, caplog):
    bank_bad, query_bad = {("dark", 1), ("light", 0)}, {("light", 5)}
    one = knn(tmp_path, bank_bad, query_bad)
    with caplog.at_level(logging.WARNING):
        found = one.accuracy(embed, {})
    assert found == {"cls": 100.0, "patches": 100.0, "both": 100.0, "skipped": 3}
    assert "k-NN without some of the bank: 2 of 12 images cannot be read" in caplog.text
    assert one.accuracy(embed, {}) == found and one.raw_accuracy() == 100.0
    rows = read_list(tmp_path / KNN_FILE)
    assert [(row["source"], row["id"]) for row in rows] == [("bank", 1), ("bank", 6), ("query", 11)]
    assert "cannot decode dark/1.png" in rows[0]["reason"]


def test_labels_stay_with_their_images(tmp_path):
    """The bank lacks its first images: shifted labels would call some light ones dark."""
    one = knn(tmp_path, {("dark", 0), ("dark", 1), ("dark", 2)})
    assert one.accuracy(embed, {})["cls"] == 100.0


def test_without_bad_images_there_is_no_count_and_no_list(tmp_path):
    found = knn(tmp_path).accuracy(embed, {})
    assert "skipped" not in found and not (tmp_path / KNN_FILE).exists()


def test_a_source_that_became_unreadable_is_refused(tmp_path):
    one = knn(tmp_path)
    for path in (tmp_path / "query").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 12 images can be read.*dark/0.png"):
        one.accuracy(embed, {})

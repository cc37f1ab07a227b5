"""The weighted vote against a slow reference, and its defined answers in the corners."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax.eval.knn import knn_accuracy, knn_classes, shared_labels

# cos 0.9, 0.8, 0.7 to the query (1, 0)
GOLDEN_BANK = np.array([[s, np.sqrt(1 - s * s)] for s in (0.9, 0.8, 0.7)])


def reference_classes(bank, labels, queries, neighbors, temperature, num_classes):
    """One query, one neighbour at a time, in float64."""
    classes = []
    for query in queries:
        cosines = [x @ query / (np.linalg.norm(x) * np.linalg.norm(query)) for x in bank]
        order = sorted(range(len(bank)), key=lambda i: (-cosines[i], i))[:neighbors]
        scores = [0.0] * num_classes
        for i in order:
            scores[labels[i]] += np.exp((cosines[i] - cosines[order[0]]) / temperature)
        classes.append(int(np.argmax(scores)))
    return classes


def blobs(num, seed, separation=1.0, num_classes=4):
    rng = np.random.default_rng(seed)
    centers = separation * np.random.default_rng(99).normal(size=(num_classes, 8))
    labels = rng.integers(0, num_classes, num)
    return centers[labels] + rng.normal(size=(num, 8)), labels


@pytest.mark.parametrize("temperature, want", [(0.07, 0), (0.3, 1)])
def test_temperature_decides_between_one_near_and_two_farther(temperature, want):
    got = knn_classes(
        GOLDEN_BANK,
        [0, 1, 1],
        [[2.0, 0.0]],
        neighbors=3,
        temperature=temperature,
        num_classes=2,
    )
    assert got.tolist() == [want]


@pytest.mark.parametrize("neighbors", [1, 5, 40])
def test_classes_match_the_reference(neighbors):
    bank, labels = blobs(40, seed=0)
    queries, _ = blobs(30, seed=1)
    got = knn_classes(bank, labels, queries, neighbors=neighbors, temperature=0.07, num_classes=4)
    assert got.tolist() == reference_classes(bank, labels, queries, neighbors, 0.07, 4)


def test_far_blobs_are_told_apart_and_shuffled_labels_are_chance():
    bank, labels = blobs(300, seed=0, separation=20)
    queries, query_labels = blobs(400, seed=1, separation=20)
    settings = {"neighbors": 20, "temperature": 0.07, "num_classes": 4}
    assert knn_accuracy(bank, labels, queries, query_labels, **settings) == 1.0
    bank, labels = blobs(300, seed=2, separation=0)  # features know nothing of the labels
    queries, query_labels = blobs(400, seed=3, separation=0)
    accuracy = knn_accuracy(bank, labels, queries, query_labels, **settings)
    assert abs(accuracy - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_the_bank_finds_itself_at_low_temperature():
    bank, labels = blobs(50, seed=0, separation=0)
    accuracy = knn_accuracy(
        bank, labels, bank, labels, neighbors=20, temperature=0.001, num_classes=4
    )
    assert accuracy == 1.0


def test_equally_similar_entries_go_by_lowest_bank_index():
    bank = np.ones((100, 3))
    labels = np.array([1] * 3 + [0] * 97)
    settings = {"temperature": 0.07, "num_classes": 2}
    assert knn_classes(bank, labels, bank[:1], neighbors=5, **settings).tolist() == [1]
    assert knn_classes(bank, labels, bank[:1], neighbors=6, **settings).tolist() == [0]  # 3 : 3
    bank[50] *= [1, 1, -1]  # less similar; must not displace a tie
    bank[60] *= [2, 2, 2]  # as similar
    assert knn_classes(bank, labels, bank[:1], neighbors=5, **settings).tolist() == [1]


def test_chunks_of_queries_change_nothing():
    bank, labels = blobs(40, seed=0)
    queries, _ = blobs(30, seed=1)
    settings = {"neighbors": 5, "temperature": 0.07, "num_classes": 4}
    whole = knn_classes(bank, labels, queries, **settings)
    parts = knn_classes(bank, labels, queries, max_entries=7 * 40, **settings)
    np.testing.assert_array_equal(parts, whole)


def test_number_of_devices_changes_nothing():
    bank, labels = blobs(40, seed=0)
    queries, query_labels = blobs(32, seed=1)
    settings = {"neighbors": 5, "temperature": 0.07, "num_classes": 4}
    want = knn_accuracy(bank, labels, queries, query_labels, **settings)
    for num_devices in (1, 8):
        mesh = Mesh(np.array(jax.devices()[:num_devices]), ("data",))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        placed = jax.device_put((bank.astype(np.float32), queries.astype(np.float32)), rows)
        assert knn_accuracy(placed[0], labels, placed[1], query_labels, **settings) == want


def test_constant_features_have_a_defined_answer():
    got = knn_classes(
        np.zeros((9, 2)),
        [1] * 9,
        np.zeros((3, 2)),
        neighbors=20,
        temperature=0.07,
        num_classes=5,
    )
    assert got.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"neighbors": 0}, "knn.neighbors=0 must be at least 1"),
        ({"temperature": 0.0}, "knn.temperature=0.0 must be above 0"),
        ({"num_classes": 1}, r"bank labels run from 0 to 1; .* must be in 0\.\.0"),
        ({"bank_ND": np.full((3, 2), np.nan)}, "bank features contain NaN"),
        ({"bank_ND": np.ones((2, 2))}, "2 bank features have 3 labels"),
        ({"queries_MD": np.ones((1, 3))}, "bank width 2 and query width 3"),
        ({"queries_MD": np.ones((0, 2))}, "query features must be a filled"),
    ],
)
def test_impossible_arguments_are_refused(changes, message):
    arguments = {"bank_ND": GOLDEN_BANK, "bank_labels_N": [0, 1, 1], "queries_MD": [[1.0, 0.0]]}
    settings = {"neighbors": 3, "temperature": 0.07, "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        knn_classes(**(arguments | settings | changes))


def test_labels_of_two_folders_meet_by_class_name():
    bank = SimpleNamespace(labels=np.array([0, 1, 2]), class_names=("ant", "bee", "cat"))
    query = SimpleNamespace(labels=np.array([1, 0]), class_names=("ant", "cat"))
    bank_labels, query_labels, num_classes = shared_labels(bank, query)
    assert bank_labels.tolist() == [0, 1, 2] and query_labels.tolist() == [2, 0]
    assert num_classes == 3
    with pytest.raises(ValueError, match=r"1 of 3 query classes are not in the bank \(bee\)"):
        shared_labels(query, bank)
    with pytest.raises(ValueError, match="needs labels"):
        shared_labels(bank, SimpleNamespace(labels=None, class_names=()))

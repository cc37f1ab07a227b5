"""One search serves every k, and a query may be kept from finding itself."""

import numpy as np
import pytest

from dinojax.eval import neighbors
from dinojax.eval.knn import knn_classes


def blobs(num, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, num)
    return np.eye(8)[labels] * 2 + rng.normal(size=(num, 8)), labels


BANK, LABELS = blobs(40, seed=0)
QUERIES, _ = blobs(12, seed=1)
VOTE = {"temperature": 0.07, "num_classes": 4}


def test_neighbours_come_most_similar_first():
    similarities, indexes = neighbors.nearest(BANK, QUERIES, 40)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (QUERIES, BANK)]
    want = unit[0] @ unit[1].T
    np.testing.assert_array_equal(indexes, np.argsort(-want, axis=1))
    np.testing.assert_allclose(similarities, -np.sort(-want, axis=1), atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_each_k_votes_as_the_search_of_its_own_does(k):
    found = neighbors.nearest(BANK, QUERIES, 40)
    votes = neighbors.scores(*found, LABELS, ks=(1, 5, 40, 900), **VOTE)
    assert list(votes) == [1, 5, 40]
    own = knn_classes(BANK, LABELS, QUERIES, neighbors=k, **VOTE)
    np.testing.assert_array_equal(votes[k].argmax(axis=1), own)
    np.testing.assert_allclose(votes[40].sum(axis=1), 1.0, atol=1e-6)


def test_rows_of_several_classes_vote_for_all_of_them():
    found = neighbors.nearest(BANK, QUERIES, 5)
    one = neighbors.scores(*found, LABELS, ks=[5], **VOTE)[5]
    hot = np.eye(4)[LABELS]
    hot[:, 3] = 1
    both = neighbors.scores(*found, hot, ks=[5], **VOTE)[5]
    np.testing.assert_allclose(both[:, :3], one[:, :3], atol=1e-6)
    np.testing.assert_allclose(both[:, 3], 1.0, atol=1e-6)


def test_a_query_is_kept_from_itself_and_not_from_its_copy():
    bank = np.concatenate([BANK[:4], BANK[:1]])
    own = neighbors.excluded_by_id(["a", "b", "c", "d", "copy"], ["a", "b", "elsewhere"])
    assert own.tolist() == [0, 1, -1]
    similarities, indexes = neighbors.nearest(bank, bank[:3], 4, excluded_M=own)
    assert indexes[0, 0] == 4 and similarities[0, 0] == pytest.approx(1.0)
    assert 1 not in indexes[1] and indexes[2, 0] == 2
    with pytest.raises(ValueError, match="5 neighbours of a bank that has 4 to give"):
        neighbors.nearest(bank, bank[:3], 5, excluded_M=own)
    with pytest.raises(ValueError, match="1 ids of the bank occur more than once"):
        neighbors.excluded_by_id(["a", "a"], ["a"])


def test_chunks_of_queries_change_nothing():
    whole = neighbors.nearest(BANK, QUERIES, 7)
    parts = neighbors.nearest(BANK, QUERIES, 7, max_entries=5 * len(BANK))
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-6)


def test_a_large_bank_is_searched_by_columns_and_finds_the_same():
    rng = np.random.default_rng(3)
    bank, queries = rng.normal(size=(1000, 4)), rng.normal(size=(9, 4))
    bank[500:520] = bank[77]  # more copies than neighbours: the lowest index goes first
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank)]
    want = (unit[0] @ unit[1].T).astype(np.float32)
    similarities, indexes = neighbors.nearest(bank, queries, 5)
    np.testing.assert_allclose(similarities, -np.sort(-want, axis=1)[:, :5], atol=1e-6)
    np.testing.assert_array_equal(indexes, np.argsort(-want, axis=1, kind="stable")[:, :5])
    _, own = neighbors.nearest(bank, bank[77:78], 5)
    assert own.tolist() == [[77, 500, 501, 502, 503]]
    _, others = neighbors.nearest(bank, bank[77:78], 5, excluded_M=[77])
    assert others.tolist() == [[500, 501, 502, 503, 504]]
    _, last = neighbors.nearest(bank, bank[999:], 3)
    assert last[0, 0] == 999
    assert neighbors.nearest(np.ones((1000, 3)), np.ones((1, 3)), 4)[1].tolist() == [[0, 1, 2, 3]]


def test_equal_similarities_go_by_the_lowest_index():
    _, indexes = neighbors.nearest(np.ones((50, 3)), np.ones((1, 3)), 4)
    assert indexes.tolist() == [[0, 1, 2, 3]]

"""What text evaluations count, on vectors whose answer is known."""

import numpy as np
import pytest

from dinojax.eval import aligned, pairs, zeroshot
from dinojax.text import dense
from dinojax.text.zeroshot import class_vectors, patch_half, prompts


def test_retrieval_of_equal_vectors_is_perfect_and_of_swapped_ones_is_not():
    images, owners = np.eye(2), np.array([[0, 0], [0, 1], [1, 2], [1, 3]])
    texts = images[owners[:, 0]]
    to_text, to_image = pairs.ranks(images, texts, owners)
    assert to_text.tolist() == [0, 0] and to_image.tolist() == [0] * 4
    to_text, to_image = pairs.ranks(images, texts[::-1], owners)
    assert to_text.tolist() == [2, 2] and to_image.tolist() == [1] * 4


def test_an_image_counts_with_its_nearest_caption():
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[-1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    to_text, _ = pairs.ranks(images, texts, np.array([[0, 0], [0, 1], [1, 2]]))
    assert to_text.tolist() == [0, 0]


def test_vectors_that_are_all_alike_find_nothing():
    same = np.ones((20, 4))
    to_text, to_image = pairs.ranks(same, same, np.stack([np.arange(20)] * 2, axis=1))
    assert to_text.min() == 19 and to_image.min() == 19
    assert zeroshot.ranks(same, same[:5], np.zeros(20, int)).min() == 4


def test_ranks_do_not_depend_on_blocks(monkeypatch):
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(30, 6)), random.normal(size=(70, 6))
    owners = np.stack([random.integers(0, 30, 70), np.arange(70)], axis=1)
    one = pairs.ranks(images, texts, owners)
    monkeypatch.setattr(pairs, "BLOCK", 7)
    for a, b in zip(pairs.ranks(images, texts, owners), one, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_class_is_the_mean_of_its_unit_prompts():
    found = class_vectors(np.array([[1.0, 0.0], [0.0, 3.0]]), 1)
    np.testing.assert_allclose(found, [[0.70710678, 0.70710678]], rtol=1e-6)
    with pytest.raises(ValueError, match="3 prompts do not divide into 2 classes"):
        class_vectors(np.ones((3, 2)), 2)


def test_prompts_are_class_after_class():
    assert prompts(["a", "b"], ["x {}", "{} y"]) == ["x a", "a y", "x b", "b y"]
    with pytest.raises(ValueError, match="has no {}"):
        prompts(["a"], ["photo"])
    with pytest.raises(ValueError, match="no templates"):
        prompts(["a"], [])


def test_the_second_half_of_a_text_is_for_patches():
    np.testing.assert_array_equal(patch_half(np.arange(6).reshape(1, 6)), [[3, 4, 5]])


def test_planted_words_are_found_whole_and_by_windows():
    """Patches that are their own mean colour; classes are colours."""

    def encode(images_BHWC):
        shape = images_BHWC.shape
        cut = images_BHWC.reshape(shape[0], shape[1] // 4, 4, shape[2] // 4, 4, 3)
        return cut.mean(axis=(2, 4))

    image = np.zeros((16, 32, 3), np.float32)
    image[:, :16, 0], image[:, 16:, 1] = 1.0, 1.0
    classes = np.eye(3, dtype=np.float32)
    found = dense.whole(encode, image, classes, 4)
    assert np.argmax(found, axis=-1).tolist() == [[0] * 4 + [1] * 4] * 4
    slid = dense.sliding(encode, image, classes, patch_size=4, side=8, stride=4)
    assert slid.shape == (16, 32, 3)
    np.testing.assert_allclose(slid.sum(axis=-1), 1.0, rtol=1e-5)
    truth = np.repeat([[0] * 16 + [1] * 16], 16, axis=0)
    np.testing.assert_array_equal(dense.labels(slid, (16, 32)), truth)


def test_windows_end_with_the_image():
    assert list(dense.windows(5, 9, side=4, stride=3)) == [
        (top, left) for top in (0, 1) for left in (0, 3, 5)
    ]
    assert list(dense.windows(3, 3, side=4, stride=3)) == [(0, 0)]


def test_names_are_lines_of_a_file_or_the_value_itself(tmp_path):
    (tmp_path / "names.txt").write_text("a cat\n\n a dog \n")
    assert aligned.lines(str(tmp_path / "names.txt"), "classes") == ["a cat", "a dog"]
    assert aligned.lines("a photo of {}", "templates") == ["a photo of {}"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no classes"):
        aligned.lines(str(tmp_path / "empty.txt"), "classes")


def test_equal_captions_are_one_text_of_all_their_images_where_asked():
    told = [("a", "b"), ("b",), ()]
    texts, edges = pairs.numbered(told, merge=True)
    assert texts == ["a", "b"] and edges.tolist() == [[0, 0], [0, 1], [1, 1]]
    texts, edges = pairs.numbered(told, merge=False)
    assert texts == ["a", "b", "b"] and edges.tolist() == [[0, 0], [0, 1], [1, 2]]
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    to_text, to_image = pairs.ranks(
        vectors, np.array([[1.0, 0.0], [0.5, 0.9]]), np.array([[0, 0], [0, 1], [1, 1]])
    )
    assert to_text.tolist() == [0, 0]  # the third image has none
    assert to_image.tolist() == [0, 0]

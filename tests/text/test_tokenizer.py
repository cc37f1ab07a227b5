"""Texts become ids as in CLIP; the recorded ids are in tests/golden."""

import importlib.util
import pickle

import numpy as np
import pytest

from dinojax.text import tokenizer, vocabulary
from dinojax.text.tokenizer import Tokenizer, clean, words
from dinojax.text.vocabulary import Vocabulary

CAPTIONS = ["a photo of a cat", "a photo of a dog", "the cat and the dog", "cats' café"] * 5


@pytest.fixture(scope="module")
def own():
    return vocabulary.train(map(clean, CAPTIONS), 540)


def test_a_row_is_start_text_end_and_zeros(own):
    found = Tokenizer(own, 20)(["a cat", ""])
    start, end = len(own) - 2, len(own) - 1
    assert found.dtype == np.int32 and found.shape == (2, 20)
    assert found[0, 0] == start and found[1, :3].tolist() == [start, end, 0]
    number = found[0].tolist().index(end)
    assert not found[0, number + 1 :].any()


def test_a_text_that_is_too_long_is_cut_and_ends_with_the_end(own):
    cut = Tokenizer(own, 6)("the cat and the dog and the cat")[0]
    whole = Tokenizer(own, 64)("the cat and the dog and the cat")[0]
    assert cut[-1] == len(own) - 1 and cut[:5].tolist() == whole[:5].tolist()


def test_pairs_are_merged_in_the_order_of_the_list():
    letters = [("c", "a"), ("a", "t</w>"), ("ca", "t</w>")]
    found = Tokenizer(Vocabulary(tuple(letters), "x"), 8)
    assert [found.vocabulary.tokens[i] for i in found.encode("cat")] == ["cat</w>"]
    later = Tokenizer(Vocabulary((letters[1], letters[0]), "x"), 8)
    assert [later.vocabulary.tokens[i] for i in later.encode("cat")] == ["c", "at</w>"]


def test_ids_of_bytes_come_first_and_merges_follow(own):
    tokens = own.tokens
    assert len(tokens) == len(own) == len(set(tokens))
    assert tokens[0] == "!" and tokens[256] == "!</w>" and tokens[-1] == "<|endoftext|>"
    assert tokens[512] == "".join(own.merges[0])


def test_training_finds_frequent_words_and_keeps_to_the_size(own):
    assert len(own) <= 540
    encoded = Tokenizer(own, 8).encode("cat")
    assert len(encoded) < 3


def test_decoding_gives_the_cleaned_text(own):
    found = Tokenizer(own, 8)
    assert found.decode(found.encode("A  Cat's café!")) == "a cat 's café ! "


def test_literal_ends_become_their_ids(own):
    found = Tokenizer(own, 8)
    assert found.encode("a <|endoftext|>")[-1] == found.end
    assert found.encode("<|startoftext|>") == [found.start]


def test_entities_spaces_and_broken_letters_are_repaired():
    assert clean("  A &amp;amp; B\n c ") == "a & b c"
    assert clean("cafÃ©") == "café"
    assert words("It's 42!") == ["it", "'s", "4", "2", "!"]


def test_plain_texts_are_treated_as_all_others(monkeypatch):
    """The short way for printable ASCII gives what the long one gives."""
    letters = np.array(list("abcXYZ019 '.,!<>|/-_#~^`\"s td"))
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(letters, 30)) for _ in range(300)]
    texts += ["<|endoftext|> a'll I'VE", "  ", "a<|startoftext|>!"]
    short = [(words(text), clean(text)) for text in texts]
    monkeypatch.setattr(tokenizer, "_is_plain", lambda text: False)
    assert [(words(text), clean(text)) for text in texts] == short


def test_what_is_no_text_is_refused_with_its_place(own):
    with pytest.raises(ValueError, match=r"text 1 is None, which is no text"):
        Tokenizer(own, 8)(["a", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"text.context=1 "):
        Tokenizer(own, 1)


def test_a_tokenizer_goes_to_worker_processes(own):
    again = pickle.loads(pickle.dumps(Tokenizer(own, 8)))
    np.testing.assert_array_equal(again(CAPTIONS[:3]), Tokenizer(own, 8)(CAPTIONS[:3]))


def test_a_vocabulary_reads_back_as_it_was_written(own, tmp_path):
    own.write(tmp_path / "own.txt")
    assert vocabulary.read(str(tmp_path / "own.txt")).merges == own.merges


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 1}\n{"b": 2}\n', "line 2 is"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is no vocabulary"),
        (b"\x1f\x8bnot gzip", "is no vocabulary"),
        (b"#title\na b\nab q\nqq zz\n", "line 4 is 'qq zz'"),
        (b"#title\n", "holds no merges"),
    ],
)
def test_a_file_of_another_kind_is_refused(content, told, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        vocabulary.read(str(tmp_path / "file"))


def test_a_missing_file_and_a_missing_package_name_the_way_on(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"text.vocabulary=.*does not exist"):
        vocabulary.read(str(tmp_path / "nothing.txt"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="open_clip_torch"):
        vocabulary.read("clip")


def test_the_vocabulary_of_the_tiles_needs_few_tokens_for_their_captions():
    found = Tokenizer(vocabulary.read("tiles"), 24)
    text = "a dark green picture of the retina of an eye"
    assert len(found.encode(text)) == len(text.split())

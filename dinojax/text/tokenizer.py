"""Texts -> token ids as in CLIP: cleaned, lower-cased, cut into words, bytes merged in pairs.

Radford et al., arXiv:2103.00020. Literal ends of texts in a caption become the ids that they name,
as in the released dino.txt.
"""

import functools
import html
import importlib
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dinojax.text.vocabulary import END, EXTRA, LAST, START, Vocabulary, byte_letters

ENDINGS = "'s|'t|'re|'ve|'m|'ll|'d"
SPECIAL = "|".join(re.escape(text) for text in (START, END))
WORDS = rf"{SPECIAL}|{ENDINGS}|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"  # of the package regex
ASCII_WORDS = re.compile(rf"{SPECIAL}|{ENDINGS}|[a-z]+|[0-9]|[^\sa-z0-9]+")
REMEMBERED = 2**18  # words whose ids are kept; captions repeat few of them

Texts = str | Sequence[str]


class Tokenizer:
    """`tokenizer(texts)` -> ids int32 [B, context]: start, text, end, zeros.

    A text that is too long is cut, and its last token is the end. May be pickled to worker
    processes.
    """

    def __init__(self, vocabulary: Vocabulary, context: int):
        if context < 2:
            raise ValueError(f"text.context={context} has no place for a start and an end; use 77.")
        self.vocabulary, self.context = vocabulary, context
        self.start, self.end = len(vocabulary) - 2, len(vocabulary) - 1
        self._ids = {token: number for number, token in enumerate(vocabulary.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(vocabulary.merges)}
        self._known = {START: [self.start], END: [self.end]}  # word -> ids

    def __call__(self, texts: Texts) -> np.ndarray:
        """Raises ValueError for what is no text, with its place in the list."""
        texts = [texts] if isinstance(texts, str) else texts
        rows_BN = np.zeros((len(texts), self.context), np.int32)
        room = self.context - 2
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {place} is {text!r:.60}, which is no text.")
            row = [self.start, *self.encode(text)[:room], self.end]
            rows_BN[place, : len(row)] = row
        return rows_BN

    def encode(self, text: str) -> list[int]:
        """The ids of a whole text, without start and end."""
        known, ids = self._known, []
        for word in words(text):
            found = known.get(word)
            if found is None:
                found = self._merged(word)
                if len(known) < REMEMBERED:
                    known[word] = found
            ids += found
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become a replacement character."""
        tokens = self.vocabulary.tokens
        letters = "".join(tokens[int(number)] for number in ids)
        bytes_of = {letter: byte for byte, letter in byte_letters().items()}
        data = bytes(bytes_of[letter] for letter in letters)
        return data.decode("utf-8", errors="replace").replace(LAST, " ")

    def _merged(self, word: str) -> list[int]:
        """The ids of a word: of its bytes, joined as long as a pair of them is a merge."""
        letters = [byte_letters()[byte] for byte in word.encode("utf-8")]
        parts = [*letters[:-1], letters[-1] + LAST]
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in itertools.pairwise(parts)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            pair, joined, at = self.vocabulary.merges[best], [], 0
            while at < len(parts):
                is_pair = at + 1 < len(parts) and (parts[at], parts[at + 1]) == pair
                joined.append(parts[at] + parts[at + 1] if is_pair else parts[at])
                at += 2 if is_pair else 1
            parts = joined
        return [self._ids[part] for part in parts]


def words(text: str) -> list[str]:
    """The words of a text after cleaning."""
    if _is_plain(text):
        return ASCII_WORDS.findall(text.lower())
    return _regex()[0].findall(clean(text))


def clean(text: str) -> str:
    """Repaired, without entities and needless spaces, lower-cased.

    Raises ModuleNotFoundError without ftfy and regex, which only plain ASCII does without.
    """
    if _is_plain(text):
        return " ".join(text.split()).lower()
    repaired = _library("ftfy").fix_text(text)
    unescaped = html.unescape(html.unescape(repaired)).strip()
    return _regex()[1].sub(" ", unescaped).strip().lower()


def _is_plain(text: str) -> bool:
    """Whether there is nothing to repair: printable ASCII without entities."""
    return text.isascii() and text.isprintable() and "&" not in text


@functools.cache
def _regex() -> tuple[Any, Any]:
    library = _library("regex")
    return library.compile(WORDS, library.IGNORECASE), library.compile(r"\s+")


@functools.cache
def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"a text of more than plain ASCII needs the package {name}; {EXTRA}"
        ) from None

"""Vocabularies of byte-pair encoding: CLIP's, one from a file, or one trained on own captions.

A vocabulary is a list of merges: a gzipped or plain text file, whose first line is a title and each
other line two tokens that become one, most frequent first. Ids count the 256 bytes, the same at the
end of a word, the merges in their order, and two that begin and end a text.
"""

import dataclasses
import functools
import gzip
import importlib
import importlib.util
import itertools
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from dinojax.files.drafts import write_text

CLIP = "clip"
TILES = "tiles"  # ours, of the captions of dinojax/data/tile_captions.py
TILES_FILE = Path(__file__).parent / "tiles_vocabulary.txt"
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 49_152 - 256 - 2  # that CLIP takes of its file, and the most of any vocabulary
LARGEST = 2**24  # bytes of a file, unpacked
START, END = "<|startoftext|>", "<|endoftext|>"
LAST = "</w>"  # marks the last byte of a word
EXTRA = "run: pip install 'dinojax[text]'"


def size(name: str) -> int:
    """Ids of a vocabulary; CLIP's is known without its file. Errors as of `read`."""
    return NUM_MERGES + 2 * 256 + 2 if name == CLIP else len(read(name))


@functools.cache
def byte_letters() -> dict[int, str]:
    """A printable letter for each byte, as in GPT-2: itself where it is one, else beyond 255.

    Printable bytes come first: the order is that of ids.
    """
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {b: chr(256 + i) for i, b in enumerate(others)}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """merges: pairs of tokens, in the order in which they are merged. name: for messages."""

    merges: tuple[tuple[str, str], ...]
    name: str

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        """The text of every id; bytes as letters."""
        letters = list(byte_letters().values())
        merged = ["".join(pair) for pair in self.merges]
        return (*letters, *(letter + LAST for letter in letters), *merged, START, END)

    def __len__(self) -> int:
        return 2 * 256 + len(self.merges) + 2

    def write(self, path: str | Path) -> None:
        """As a text file that `read` takes."""
        write_text(path, "\n".join([f"#{self.name}", *map(" ".join, self.merges)]) + "\n")


def read(name: str) -> Vocabulary:
    """The vocabulary that `clip`, `tiles` or the path of a file names.

    clip: CLIP's, from the installed package open_clip_torch; nothing is downloaded. tiles: of the
    recipe dinotxt_tiny, which comes with the program. Raises
    ModuleNotFoundError without that package, FileNotFoundError, and ValueError for a file of
    another kind, which names the first line that does not fit.
    """
    places = {CLIP: _of_package, TILES: lambda: TILES_FILE}
    path = places[name]() if name in places else Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"text.vocabulary={name} does not exist; give a file of merges, or {CLIP!r}."
        )
    lines = _text(path).split("\n")
    merges = tuple(_pairs(lines[1 : NUM_MERGES + 1], path))
    if not merges:
        raise ValueError(f"{path} holds no merges, so it is no vocabulary of byte-pair encoding.")
    return Vocabulary(merges, name if name in places else path.name)


def train(texts: Iterable[str], size: int, name: str = "own") -> Vocabulary:
    """A vocabulary of at most `size` ids from texts that are cleaned already (tokenizer.clean).

    Trained by the package tokenizers. Raises ModuleNotFoundError without it, and ValueError for a
    size that leaves no merge.
    """
    try:
        library = importlib.import_module("tokenizers")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"training a vocabulary needs tokenizers; {EXTRA}") from None
    if size <= 2 * 256 + 2:
        raise ValueError(f"a vocabulary of {size} ids has no merges; give more than 514.")
    from dinojax.text.tokenizer import WORDS

    trainer = library.trainers.BpeTrainer(
        vocab_size=size - 256 - 2,  # it counts bytes once and no ends of texts
        initial_alphabet=sorted(byte_letters().values()),
        end_of_word_suffix=LAST,
        show_progress=False,
    )
    found = library.Tokenizer(library.models.BPE(end_of_word_suffix=LAST))
    split = library.pre_tokenizers.Split(library.Regex(WORDS), "removed", invert=True)
    level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.pre_tokenizer = library.pre_tokenizers.Sequence([split, level])
    found.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(found.to_str())["model"]["merges"]]
    return Vocabulary(tuple(merges[: min(NUM_MERGES, size - 2 * 256 - 2)]), name)


def _of_package() -> Path:
    spec = importlib.util.find_spec("open_clip")  # found, not imported: that would import torch
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"text.vocabulary={CLIP!r} is read from the package open_clip_torch; {EXTRA}, or set "
            "text.vocabulary to a file of merges (dinojax vocabulary makes one of your captions)."
        )
    return Path(spec.origin).parent / CLIP_FILE


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                data = packed.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"more than {LARGEST // 2**20} MiB")
        return data.decode("utf-8")
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is no vocabulary of byte-pair encoding: {error}.") from None


def _pairs(lines: list[str], path: Path) -> Iterable[tuple[str, str]]:
    known = {a + b for a, b in itertools.product(byte_letters().values(), ("", LAST))}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        pair = tuple(line.split())
        if len(pair) != 2 or not set(pair) <= known:
            raise ValueError(
                f"{path}, line {number} is {line[:60]!r}, which is no pair of known tokens, so this"
                f" is no vocabulary of byte-pair encoding; CLIP's is called {CLIP_FILE}."
            )
        known.add("".join(pair))
        yield pair[0], pair[1]


def train_command(path: str, *, size: int, out: str) -> None:
    """`dinojax vocabulary`: of the captions of a data set, to a file."""
    from dinojax.data.sources import EMBEDDED, SOURCES, kind_of
    from dinojax.text.tokenizer import clean

    kind = path if path in EMBEDDED else kind_of(path)
    source = SOURCES[kind](path="" if path in EMBEDDED else path, channels=3, key="PATH")
    texts = [clean(text) for i in range(len(source)) for text in source.encoded(i).captions]
    if not texts:
        raise ValueError(f"{path} has no captions to make a vocabulary of; see docs/text.md.")
    found = train(texts, size, name=f"of the captions of {path}")
    found.write(out)
    print(f"{out}: {len(found):,} ids of {len(texts):,} captions")

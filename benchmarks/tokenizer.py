"""Seconds to tokenize captions, ours and open_clip's Python tokenizer, on the same texts.

Run: python -m benchmarks.tokenizer [--texts N]. Needs open_clip_torch; one line of JSON per kind of
text, and exit code 1 where an id differs or ours is not three times as fast.
"""

import argparse
import importlib
import importlib.util
import json
import os
import random
import sys
import time
import types

from dinojax.data.tile_captions import SUBJECTS
from dinojax.text import vocabulary
from dinojax.text.tokenizer import Tokenizer

WORDS = "a photo of the small large bad good low resolution black and white sketch painting".split()
FANCY = " “café” & naïve"
LEAST = 3.0  # times as fast


def captions(count: int, *, fancy: bool) -> list[str]:
    """Sentences of subjects and common words; fancy: with quotes and accents in every tenth."""
    draw = random.Random(0)
    subjects = list(SUBJECTS.values())
    found = []
    for number in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.randint(4, 14))]
        text = " ".join([*words, draw.choice(subjects), "with", draw.choice(subjects)])
        found.append(text + FANCY * (fancy and number % 10 == 0))
    return found


def theirs():
    """open_clip's tokenizer, without the models that its package imports."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise SystemExit("open_clip_torch is not installed: pip install 'dinojax[clip]'")
    package = types.ModuleType("open_clip")
    package.__path__ = [os.path.dirname(spec.origin)]
    sys.modules["open_clip"] = package
    return importlib.import_module("open_clip.tokenizer").SimpleTokenizer()


def seconds(tokenize, texts) -> tuple[float, object]:
    """(the best of three, its ids)."""
    best, found = float("inf"), None
    for _ in range(3):
        began = time.perf_counter()
        found = tokenize(texts)
        best = min(best, time.perf_counter() - began)
    return best, found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=10_000)
    count = parser.parse_args(argv).texts
    ours, other, failed = Tokenizer(vocabulary.read("clip"), 77), theirs(), False
    for name in ("plain", "every tenth fancy"):
        texts = captions(count, fancy=name != "plain")
        own, ids = seconds(ours, texts)
        baseline, known = seconds(lambda given: other(given).numpy(), texts)
        equal = bool((ids == known).all())
        row = {"name": f"tokenizer/{name}", "unit": "s", "value": own, "baseline": baseline}
        print(json.dumps({**row, "ratio": baseline / own, "equal": equal, "texts": count}))
        failed |= not equal or baseline / own < LEAST
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

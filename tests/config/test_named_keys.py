"""Every config key that a message, a help text or a page names is one of configs/keys/."""

import ast
import re
from pathlib import Path

import pytest

from dinojax.config.hints import USUAL
from dinojax.config.recipe import flat
from dinojax.configs import base
from dinojax.train import initialize

ROOT = Path(__file__).parent.parent.parent
KEYS = set(flat(base.get_config()))
SECTIONS = {".".join(key.split(".")[:n]) for key in KEYS for n in range(1, key.count(".") + 1)}
TOP = sorted({key.split(".")[0] for key in KEYS if "." in key})
# `model.name`, `--set knn.every`, but no file (log.txt), no attribute of Python and no sentence.
NAMED = re.compile(rf"(?<![\w./-])(?:{'|'.join(TOP)})(?:\.[a-z_][a-z_0-9]*)+(?![\w(/*{{])")
FILES = re.compile(r"\.(safetensors|pth|py|txt|md|json|jsonl|html|yaml|png|tar|log|csv|npz|draft)$")


# A prefix of keys, names of timm and of Hugging Face, a member of a .pth file, a worked example, a
# selector of a style sheet.
NO_KEYS = ("losses.toy", "text.mark", "data.num_", "model.head", "image.bytes", "data.pkl")


def strange(text):
    """Names in a text that look like keys and are none."""
    found = {match.group() for match in NAMED.finditer(text)}
    known = KEYS | SECTIONS | set(NO_KEYS)
    return {n for n in found if n not in known and not FILES.search(n)}


def messages(path):
    """Strings of a module that are no docstrings, f-strings with {} for what is put in."""
    tree = ast.parse(path.read_text())
    parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = [v.value if isinstance(v, ast.Constant) else "{}" for v in node.values]
            yield "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in parts:
                yield node.value


PACKAGE = [p for p in sorted((ROOT / "dinojax").rglob("*.py")) if "migrate" not in p.parts]
PACKAGE += sorted((ROOT / "configs").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_name_keys_that_exist(path):
    assert {name for text in messages(path) for name in strange(text)} == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_name_keys_that_exist(path):
    assert strange(path.read_text()) == set()


def test_what_a_file_of_weights_is_compared_by_are_keys():
    named = {key for keys in initialize.MEANING.values() for key in keys.values()}
    assert named | {f"rope.{name}" for name in initialize.ROPE} <= KEYS
    assert set(USUAL.values()) <= KEYS


def test_a_name_that_is_no_key_is_seen():
    assert strange("set model.channels=3 or knn.every") == {"model.channels"}
    assert strange("see log.txt, data/model.py and model.name.") == set()

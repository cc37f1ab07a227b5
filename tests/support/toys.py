"""Additions from outside, as a contributor would make them: for each, the files that it touches.

A file that is new has one pair ("", its text); of a file that is there, each pair is a line or more
as it stands and what takes its place. The tests of a toy are written beside it.
"""

LOSS_FILE = '''"""How far cls tokens of global crops are from unit length: a toy."""

import jax.numpy as jnp


def toy_loss(cls_BGD):
    """Mean of (length - 1) squared; float32."""
    lengths_BG = jnp.sqrt(jnp.sum(jnp.square(cls_BGD.astype(jnp.float32)), -1))
    return jnp.mean(jnp.square(lengths_BG - 1.0))
'''
LOSS_TEST = """import numpy as np

from dinojax.losses.toy import toy_loss


def test_unit_vectors_cost_nothing():
    assert toy_loss(np.eye(4, dtype=np.float32)[None]) == 0.0
"""
TERM = """        if targets.gram_BGPD is not None:
            patches_BGPD ="""
TOTAL = """        if self.gram is not None:
            total +="""
LOSS = {
    "dinojax/losses/toy.py": [("", LOSS_FILE)],
    "dinojax/train/objective.py": [
        (
            "from dinojax.losses.specs import",
            "from dinojax.losses.toy import toy_loss\nfrom dinojax.losses.specs import",
        ),
        (TERM, f'        terms["toy"] = toy_loss(cls_BGD)\n{TERM}'),
        (TOTAL, f'        total += spec.other("toy") * terms["toy"]\n{TOTAL}'),
    ],
    "configs/keys/learning.py": [
        (
            '    "losses.koleo": Key(',
            '    "losses.toy": Key(0.0, "weight; [ours]", (0, FLOAT), terms=("toy",)),\n'
            '    "losses.koleo": Key(',
        )
    ],
    "tests/losses/test_toy.py": [("", LOSS_TEST)],
}

FORMAT_FILE = '''"""Images as lines of base64 in one text file: a toy."""

import base64
import dataclasses

from dinojax.data.encoded import EncodedSource, check_one_decodes, fingerprint
from dinojax.data.example import Encoded


@dataclasses.dataclass(frozen=True)
class Lines:
    lines: tuple[str, ...]
    labels: None = None

    def __len__(self):
        return len(self.lines)

    def encoded(self, index):
        return Encoded(base64.b64decode(self.lines[index]), None, f"line {index + 1}")


def toy(*, path, channels, split="train", key="data.path", options):
    with open(path) as file:
        lines = tuple(file.read().split())
    found = EncodedSource(Lines(lines), channels, (), fingerprint(enumerate(lines)), options)
    return check_one_decodes(found, f"{key}={path}")
'''
FORMAT = {
    "dinojax/data/toy.py": [("", FORMAT_FILE)],
    "dinojax/data/sources.py": [
        (
            "\n# data.source: builder(",
            "from dinojax.data.toy import toy\n\n# data.source: builder(",
        ),
        ('    "tiles": tiles,\n', '    "tiles": tiles,\n    "toy": toy,\n'),
    ],
}  # fmt: skip

STRATEGY_TEST = """from dinojax.sharding import axes


def test_all_devices_hold_all_heads():
    assert axes.grid("toy", 4) == {"replica": 1, "fsdp": 4, "tensor": 1}
    assert axes.device_axes("toy", "prototype") == ()
"""
STRATEGY = {
    "dinojax/sharding/axes.py": [
        (
            '    "dp": {"image": DATA},\n',
            '    "dp": {"image": DATA},\n    "toy": {"image": DATA, "width": ("fsdp",)},\n',
        ),
        ('SPREAD = {"dp": "replica",', 'SPREAD = {"toy": "fsdp", "dp": "replica",'),
        ('SIZES = {"dp": (),', 'SIZES = {"toy": (), "dp": (),'),
    ],
    "tests/sharding/test_toy.py": [("", STRATEGY_TEST)],
}

VERB = {
    "dinojax/cli/toy.py": [
        (
            "",
            '''"""`dinojax toy`."""


def add_verb(commands, parser):
    command = parser.command(commands, "toy", "count the keys of a recipe", "Keys.", _run)
    parser.config_options(command, required=True)


def _run(args):
    from dinojax.config import load

    print(len(load(args.config, args.set).values()), "keys")
''',
        )
    ]
}

SIZE = {
    "dinojax/models/zoo.py": [
        (
            "VITS: dict[str, dict[str, Any]] = {\n",
            "VITS: dict[str, dict[str, Any]] = {\n"
            '    "vittoy": dict(width=24, depth=2, num_heads=3, ffn="mlp", ffn_ratio=2.0),\n',
        )
    ]
}

# What -> its files, and how many the README of contributors promises.
TOYS = {
    "a loss": (LOSS, 4),
    "a data format": (FORMAT, 2),
    "a strategy": (STRATEGY, 2),
    "a verb": (VERB, 1),
    "a model size": (SIZE, 1),
}

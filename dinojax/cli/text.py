"""The commands of text alignment: describe, vocabulary, and export in dino.txt's names."""

import argparse
from collections.abc import Callable
from typing import Any

from dinojax.cli.parser import Parser

DESCRIBE = """\
Draw which of some words each patch of an image is nearest to. PATH is a run with a text stage, or
released files of dino.txt with the backbone they were trained on.

examples:
  dinojax describe cat.jpg --words "a cat,a sofa,a plant" --weights runs/dinotxt_tiny
  dinojax describe street.jpg --words road,sky,car --weights dinotxt.pth --backbone vitl16.pth
"""
VOCABULARY = """\
Make a vocabulary of byte-pair encoding of a data set's captions, for --set text.vocabulary=FILE.

examples:
  dinojax vocabulary captions.csv --size 8192 --out vocabulary.txt
"""

Program = Callable[[str], Callable]


def add_verb(commands: Any, shared: Parser) -> None:
    """`describe` and `vocabulary`."""
    command, program = shared.command, shared.program
    _describe(command(commands, "describe", "words for every patch", DESCRIBE, _run(program)))
    made = "a vocabulary of captions"
    _vocabulary(command(commands, "vocabulary", made, VOCABULARY, _make(program)))


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="IMAGE", help="an image file")
    parser.set_defaults(path_option="IMAGE")
    parser.add_argument("--words", metavar="A,B,C", required=True, help="separated by commas")
    parser.add_argument("--weights", metavar="PATH", required=True, help="run, file or folder")
    parser.add_argument("--backbone", metavar="PATH", help="of files that hold none")
    parser.add_argument("--vocabulary", metavar="FILE", help="default: the weights' own, or clip")
    parser.add_argument("--stage", metavar="NAME", help="of a run; default: the one it is at")
    parser.add_argument("--step", type=int, metavar="N", help="of a run; default: the last")
    parser.add_argument("--template", default="a photo of {}", help="{} is the word")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="of the short side")
    parser.add_argument("--out", metavar="PNG", help="default: IMAGE-words.png, here")


def _run(program: Program):
    def run(args: argparse.Namespace) -> None:
        names = ("words", "weights", "backbone", "vocabulary", "stage", "step", "template")
        options = {name: getattr(args, name) for name in (*names, "size", "out")}
        program("describe")(args.path, **options)

    return run


def _vocabulary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="of images with captions, or `tiles`")
    parser.set_defaults(path_option="PATH")
    parser.add_argument("--size", type=int, metavar="N", default=8192, help="ids, above 514")
    parser.add_argument("--out", metavar="FILE", required=True, help="of merges, as text")


def _make(program: Program):
    def run(args: argparse.Namespace) -> None:
        program("vocabulary")(args.path, size=args.size, out=args.out)

    return run

"""`dinojax config show | explain | diff | migrate`: configs, without training."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from dinojax.cli.parser import Parser
from dinojax.config import Config, ConfigError, diff, explain, load, of_values, read
from dinojax.configs.keys.key import COUNT, FLOAT
from dinojax.files.drafts import write_text
from dinojax.migrate.files import read_yaml, recipe_text
from dinojax.migrate.translate import migrate

SUMMARY = "show, explain, compare or migrate configs"
CONFIG = """\
Look at configs without training. A config is a recipe (file or packaged name), a run directory or
its config.json.

examples:
  dinojax config show --config tiny --set batch_size=32
  dinojax config explain crops.local_area
  dinojax config diff tiny vitl16_in1k
  dinojax config diff runs/tiny configs/tiny.py
  dinojax config migrate dinov3_vit7b16_pretrain.yaml --gpus 256 --out mine.py
"""
MIGRATE = """\
Make a recipe of a training configuration (YAML) of the DINOv3 or DINOv2 reference. Every key is
translated, or listed as ignored with the reason, or the command refuses: a key that would make
another run, one that nothing reads there but that has another value than the released files, or
one that is in no table. --ignore takes the file as if it had not that key; with --partial all of
them are listed and left out. What is written holds values alone, checked before as a recipe is.

examples:
  dinojax config migrate vitl_im1k_lin834.yaml --gpus 32 > mine.py
  dinojax config migrate mine.yaml --gpus 8 --reference dinov2 --out mine.py --partial
  dinojax config migrate mine.yaml --gpus 8 --ignore wandb --ignore student.ffn_ratio
"""


def add_verb(commands: Any, parser: Parser) -> None:
    command, config_options = parser.command, parser.config_options
    commands = parser.group(commands, "config", SUMMARY, CONFIG)
    show = command(commands, "show", "every key, its value, and who set it", CONFIG, _show)
    config_options(show, required=True)
    show.add_argument("--stage", metavar="NAME", help="of the recipe; default: the first")
    one_key = command(commands, "explain", "meaning, default and source of a key", CONFIG, _explain)
    one_key.add_argument("key", metavar="KEY", help="dotted, such as crops.local_size")
    config_options(one_key, required=False)
    two = command(commands, "diff", "keys in which two configs differ", CONFIG, _diff)
    for name in ("a", "b"):
        two.add_argument(name, metavar=name.upper(), help="recipe, run directory or config.json")
    made = command(commands, "migrate", "a recipe of a reference's YAML", MIGRATE, _migrate)
    made.add_argument("file", metavar="FILE.yaml", type=Path, help="of the DINOv3 or DINOv2 code")
    made.add_argument(
        "--gpus", type=int, required=True, metavar="N", help="it was run on; gives the batch size"
    )
    made.add_argument("--reference", choices=("dinov3", "dinov2"), help="default: what keys tell")
    made.add_argument("--out", metavar="RECIPE.py", type=Path, help="default: to the terminal")
    made.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="leave out this key, or section, of the file; may be given many times",
    )
    made.add_argument(
        "--partial", action="store_true", help="leave out what is not supported or unknown"
    )


def _show(args: argparse.Namespace) -> None:
    config = load(args.config, args.set, stage=args.stage, measure=_measured)
    lines = [
        f"{key} = {value!r}  ({config.sources[key]})" for key, value in config.values().items()
    ]
    print("\n".join(line.removesuffix("  (base)") for line in lines))


def _measured(values):
    """What a recipe wants to know of images and machine; imports jax only then."""
    from dinojax.train.measure import measure

    return measure(values)


def _explain(args: argparse.Namespace) -> None:
    told = explain(args.key)
    print(f"{told.key}: {told.meaning}\ndefault: {told.default!r}\nsource:  {told.source}")
    if told.choices:
        print(f"choices: {', '.join(map(repr, told.choices))}")
    if told.limits is not None:
        low, high = told.limits
        print(f"range:   {low:g} {'and up' if high in (COUNT, FLOAT) else f'to {high:g}'}")
    if args.config is not None:
        config = load(args.config, args.set)
        print(f"here:    {config.values()[args.key]!r} ({config.sources[args.key]})")


def _diff(args: argparse.Namespace) -> None:
    for key, left, right in diff(_either(args.a), _either(args.b)):
        print(f"{key}: {left!r} -> {right!r}")


def _either(name: str) -> Config:
    path = Path(name)
    return read(path) if path.is_dir() or path.suffix == ".json" else load(name)


def _migrate(args: argparse.Namespace) -> None:
    if args.gpus < 1:
        raise ConfigError(f"--gpus {args.gpus}: give the number of GPUs of the run, from 1 on")
    if args.out is not None and args.out.suffix != ".py":
        raise ConfigError(f"--out {args.out}: a recipe is a Python file; give a name with .py")
    given = read_yaml(args.file)
    found = migrate(given, gpus=args.gpus, flavour=args.reference, ignore=args.ignore)
    if (found.refused or found.unknown) and not args.partial:
        raise ConfigError(
            "\n".join([f"{args.file} asks for what is not here:", *found.report()])
            + "\nChange the file, pass --ignore KEY (or --ignore SECTION) for what had no meaning "
            "in that run, or --partial to leave out all that is not supported or unknown."
        )
    name = str(args.out or "RECIPE.py")
    values = of_values(found.values, f"{args.file} as {name}")  # before anything is replaced
    found = dataclasses.replace(found, values=values)
    text = recipe_text(found, source=args.file.name, name=name, gpus=args.gpus)
    if args.out is None:
        print(text, end="")
        return
    write_text(args.out, text)
    print("\n".join([*found.report(), f"{args.out}: {len(found.values)} values set"]))

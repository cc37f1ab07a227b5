"""`dinojax curate`: from a pool of images to a clean, balanced set that `train` reads."""

import argparse
import importlib
from typing import Any

from dinojax.cli import processes
from dinojax.cli.parser import Parser
from dinojax.distributed.interrupt import leaving

SUMMARY = "a balanced training set from a pool of images"
CURATE = """\
From a pool of images to a clean, balanced training set: embeddings, near-duplicates, hierarchical
k-means, balanced sample, retrieval, and the mixture that `train` reads. RECIPE is a YAML file
(docs/curation.md). OUT receives a folder for each step and report.html. A step that is done is not
done again; one that was killed goes on. The lists are the same on any number of devices and hosts.

examples:
  dinojax curate run photos.yaml --out curated
  dinojax curate run photos.yaml --out curated --set sample.target=5000 --anew
  dinojax train --config curated/mixture/recipe.py --run runs/curated
"""
STEPS = {
    "run": "all steps, one after the other",
    "embed": "embeddings of the pool, of benchmarks and of seeds; also of images that were added",
    "dedup": "near-duplicates, and images like those of benchmarks",
    "kmeans": "hierarchical k-means with resampling",
    "sample": "a balanced set",
    "retrieve": "images like those of seed sets",
    "mixture": "lists of images and a recipe that `train` reads",
    "report": "one page that shows what was done",
}


def add_verb(commands: Any, shared: Parser) -> None:
    """A parser for each step."""
    commands = shared.group(commands, "curate", SUMMARY, CURATE)

    def program(args: argparse.Namespace) -> None:
        with leaving():
            curate = importlib.import_module("dinojax.curate.run").curate
            importlib.import_module("dinojax.monitor.compilation").keep_programs()
            with processes.joined(args):
                curate(args.step, args.recipe, args.out, overrides=args.set, anew=args.anew)

    for name, summary in STEPS.items():
        parser = shared.command(commands, name, summary, CURATE, program)
        parser.set_defaults(step=name)
        parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")
        parser.add_argument("--out", metavar="DIR", required=True, help="made if absent")
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a key of the recipe, sample.target=5000; may be given many times",
        )
        parser.add_argument(
            "--anew",
            action="store_true",
            help="make steps again that were made by other settings, in place of an error",
        )
        processes.add(parser)

"""The recipes, by kind."""

from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "configs"

NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "base"))

RECIPES = [name for name in NAMES if not name.startswith("distill_")]

FAMILIES = [name for name in NAMES if name.startswith("distill_")]

# What the program around the networks reads: data, files and evaluation, and schedules' lengths.
READ_BY_THE_RUN = ("data.", "checkpoint.", "log.", "knn.", "stage", "seed", "start.", "until.")

"""A module imports only from lower layers; the folders of layer 2 are strangers to each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dinojax"

LAYERS = [
    {
        "config",
        "rules",
        "recipe",
        "overrides",
        "keys",
        "metrics",
        "interrupt",
        "line",
        "turns",
        "watchdog",
        "compiling",
        "hosts",
        "crews",
        "launcher",
        "lock",
        "limits",
        "energy",
        "tensorboard",
        "checksum",
        "stage_rules",
        "distill_rules",
        "stages",
        "axes",
        "topology",
        "shares",
    },
    {"mesh", "compilers", "interpolate", "passing", "storing"},
    {"gathering"},
    {"data", "augment", "models", "losses", "health", "host_rows"},
    {"objective", "optim", "runs"},
    {"state", "adapters", "ailments", "watch"},
    {"step", "checkpoint", "weights", "doctor"},
    {"eval", "curate", "viz", "inspect_checkpoint", "autopsy", "convert"},
    {"origin"},
    {"teacher"},
    {"teaching", "networks"},
    {"program"},
    {"directory", "migrate", "plan"},
    {"run", "start"},
    {"finish", "upkeep", "boundaries", "preflight"},
    {"family", "pupil"},
    {"chooser", "ending", "family_plan"},
    {"train", "distill", "replay", "measure", "words"},
    {"embed", "cli_stages", "cli_weights", "cli_data", "cli_config", "cli_plan", "cli_hosts"},
    {"cli"},
    {"__main__"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def part(path):
    """The module or folder directly under dinojax/ that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(source):
    """Parts of dinojax that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("dinojax."):
                yield name.split(".")[1]


def violations(own, source):
    """Imports of a part that its layer forbids."""
    bad = []
    for other in imported_parts(source):
        same_part = other == own
        lower = LAYER[other] < LAYER[own]
        beside = LAYER[other] == LAYER[own] == 0  # the bottom has nothing to stand on
        if not (same_part or lower or beside):
            bad.append(f"{own} (layer {LAYER[own]}) imports {other} (layer {LAYER[other]})")
    return bad


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    assert part(path) in LAYER, f"{part(path)} has no layer; add it to LAYERS"
    assert not violations(part(path), path.read_text())


def test_the_rule_sees_an_upward_and_a_sideways_import():
    assert violations("losses", "from dinojax.train.step import train_step")
    assert violations("losses", "def f():\n    import dinojax.models.vit")
    assert violations("mesh", "from dinojax import models")
    assert not violations("losses", "from dinojax import mesh\nfrom dinojax.losses import koleo")


def test_only_the_programs_see_the_whole_config():
    """Builders take sections or values; whoever imports dinojax.config.config sees everything."""
    seen = {part(path) for path in FILES if "config" in set(imported_parts(path.read_text()))}
    allowed = {"config", "program", "run", "train", "distill", "convert", "replay"}
    allowed |= {"directory", "start", "upkeep", "measure", "words", "origin", "teacher"}
    allowed |= {"family", "family_plan", "chooser", "networks", "preflight"}
    allowed |= {"cli", "cli_config", "cli_data", "cli_plan", "plan"}
    assert seen <= allowed

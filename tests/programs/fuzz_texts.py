"""Mutated YAML through `config migrate`, and mutated recipes through `config show`."""

import tempfile
from pathlib import Path

import numpy as np
import yaml

from tests.programs.fuzz_json import WHOLE, mutated, mutated_bytes, watched

# Keys of theirs of every kind, in the layout of their files.
THEIRS = {
    "MODEL": {"META_ARCHITECTURE": "SSLMetaArch", "WEIGHTS": ""},
    "compute_precision": {"param_dtype": "bf16"},
    "dino": {"head_n_prototypes": 4096, "koleo_loss_distributed": True},
    "ibot": {"separate_head": True, "mask_ratio_min_max": [0.1, 0.5]},
    "gram": {"use_loss": True, "ckpt": "a.pth", "rep_update": True, "update_frequency": 100},
    "train": {"batch_size_per_gpu": 16, "OFFICIAL_EPOCH_LENGTH": 100, "centering": "centering"},
    "student": {"arch": "vit_small", "patch_size": 16, "in_chans": 3, "layerscale": 1e-5},
    "teacher": {"momentum_teacher": 0.99, "warmup_teacher_temp_epochs": 3},
    "optim": {"epochs": 10, "lr": 1e-3, "warmup_epochs": 1, "clip_grad": 3.0},
    "crops": {
        "global_crops_size": [224, 256],
        "local_crops_size": [96, 112],
        "gram_teacher_crops_size": [448, 512],
        "global_local_crop_pairs_ratios": [0.5, 0.5],
        "rgb_mean": [0.5, 0.5, 0.5],
    },
    "checkpointing": {"period": 100, "keep_every": 200},
    "evaluation": {"eval_period_iterations": 100},
}
SCHEDULES = {
    name: {"start": 0.05, "peak": 0.1, "end": 0.2, "warmup_epochs": 1, "cosine_epochs": 2}
    for name in ("lr", "weight_decay", "teacher_temp", "momentum")
}
SCHEDULES["lr"]["freeze_last_layer_epochs"] = 1
RECIPE = (
    'from dinojax.configs import base\n\nSTAGES = {"a": lambda c: c}\n\n\ndef get_config():\n'
    "    c = base.get_config()\n    c.num_steps = 200_000\n    c.crops.update(num_local=4)\n"
    '    c.data.path = "images"\n    c.optim.clip = None\n    return c\n'
)
# Lines that a recipe may hold in place of one of its own.
LINES = (
    *("return", "return 3", "c = None", "raise ValueError('x')", "c.seed = '1'", "c.x = 1", "("),
    *("import sys; sys.exit(0)", "exit()", "c.crops = 3", "c.seed = [c]", "assert False", "1/0"),
    *("c.data.mixture = ((1,),)", "c.update(seed=2)", "del c.seed", "c.unlock(); c.seed = None"),
    *("global c", "yield c", "get_config()", "c.seed = c.seed = 3", "c['crops.num_local'] = 'a'"),
    *("STAGES = 3", "STAGES = {1: 2}", "STUDENTS = {'a': 3}", "smoke = 3", "c.stage = '../x'"),
    *("c.data.path = '\\0'", "c.seed = float('nan')", "c.optim.clip = 10**400", "\t\tx", "\x0c"),
    *("raise SystemExit", "c.crops.aspect = (1, 'x')"),
)
ALIASES = (
    "&a [*a]",
    "&a {<<: *a}",
    "&a {b: *a}",
    "{<<: 3}",
    "!!python/name:os.system",
    "!!binary x",
)
ALIASES += (
    "2001-01-01",
    "1:30",
    ".nan",
    "0o7",
    "1_0",
    "? x",
    "- x",
    "|\n x",
    "'",
    '"\\x"',
    "*none",
)


def theirs(rng) -> bytes:
    """A mutated YAML file."""
    kind = rng.integers(0, 10)
    tree = THEIRS | ({"schedules": SCHEDULES} if rng.random() < 0.3 else {})
    if kind == 0:
        return WHOLE[rng.integers(len(WHOLE))]
    if kind <= 6:
        tree = mutated(tree, rng)
        tree = mutated(tree, rng) if rng.random() < 0.3 else tree
    try:
        text = yaml.safe_dump(tree)
    except (yaml.YAMLError, ValueError):  # digits that Python does not write
        text = yaml.safe_dump(THEIRS)
    if kind in (7, 8):
        lines = text.splitlines()
        place = int(rng.integers(len(lines)))
        name = lines[place].partition(":")[0]
        lines[place] = f"{name}: {ALIASES[rng.integers(len(ALIASES))]}"
        text = "\n".join(lines) + "\n"
    data = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(data, rng) if kind == 9 else data


def recipe(rng) -> bytes:
    """A mutated recipe."""
    if rng.random() < 0.25:
        return mutated_bytes(RECIPE.encode(), rng)
    lines = RECIPE.splitlines()
    place = int(rng.integers(len(lines)))
    kind = rng.integers(0, 4)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, lines[place])
    else:
        indent = " " * (len(lines[place]) - len(lines[place].lstrip()))
        lines[place] = indent + LINES[rng.integers(len(LINES))]
    return ("\n".join(lines) + "\n").encode()


def fuzz(seed: int, count: int, *, progress=lambda done, faults: None) -> dict:
    """{"read", "refused": numbers of files, "faults": list of (file, what)}; half of each kind."""
    rng, result, faults = np.random.default_rng(seed), {"read": 0, "refused": 0}, []
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            is_yaml = number % 2 == 0
            path = Path(place) / ("mutant.yaml" if is_yaml else "mutant.py")
            data = theirs(rng) if is_yaml else recipe(rng)
            path.write_bytes(data)
            words = ["config", "migrate", str(path), "--gpus", "4"]
            if not is_yaml:
                words = ["config", "show", "--config", str(path)]
            code, wrong = watched(words, lambda said: path.name in said)  # noqa: B023
            result["read" if code == 0 else "refused"] += 1
            faults += [f"{data[-300:]!r}: {line}" for line in wrong]
            progress(number + 1, faults)
    return {**result, "faults": faults}

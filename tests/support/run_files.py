"""A run directory as training leaves it, made of numbers."""

import json

import numpy as np

from dinojax import config as configs
from dinojax.checkpoint.manager import COMMITTED

NUM_ROWS = 80


def healthy():
    """Columns as the tiny recipe gives them: losses fall, norms settle, the teacher sharpens."""
    t = np.linspace(0, 1, NUM_ROWS)
    fall = np.exp(-6 * t)
    return {
        "total": 9.0 + 2.0 * fall,
        "dino_local": 5.2 + 1.0 * fall,
        "dino_global": 5.0 + 1.2 * fall,
        "ibot": 2.5 + 0.6 * fall,
        "koleo": -0.3 + 0.2 * fall,
        "teacher_entropy/dino": 0.75 + 0.2 * fall,
        "teacher_entropy/ibot": 0.7 + 0.2 * fall,
        "prototypes_used/dino": 0.8 - 0.5 * fall,
        "effective_rank": 20 - 10 * fall,
        "cls_spread": 0.6 - 0.3 * fall,
        "neighbor_distance": 0.7 - 0.2 * fall,
        "duplicates": 0 * t,
        "cls_patch_cosine": 0.3 + 0.1 * t,
        "locality": 0.2 + 0 * t,
        "patch_norm": 10 + t,
        "patch_norm_max": 14 + t,
        "grad_norm/backbone": 0.5 + fall,
        "grad_norm/dino_head": 0.2 + fall,
        "grad_norm/ibot_head": 0.3 + fall,
        "ema_change": 1e-4 * (1 - t),
        "lr": 1e-3 * (1.01 - t),
        "momentum": 0.98 + 0.02 * t,
        "data_wait": 0.01 + 0 * t,
        "bad_steps": 0 * t,
    }


def run_dir(tmp_path, columns, *overrides, knn=(20.0, 40.0, 44.0)):
    """A run directory as training leaves it."""
    configs.save(configs.load("tiny", list(overrides)), tmp_path / "config.json")
    rows = [
        {"step": 15 * (n + 1), **{name: float(values[n]) for name, values in columns.items()}}
        for n in range(NUM_ROWS)
    ]
    steps = [round(n * 1200 / max(len(knn) - 1, 1)) for n in range(len(knn))]
    rows += [{"step": step, "knn/both": value} for step, value in zip(steps, knn, strict=True)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    saved = tmp_path / "checkpoints" / "pretrain" / "1200"
    saved.mkdir(parents=True)
    (saved / COMMITTED).touch()
    return tmp_path

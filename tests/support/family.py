"""A small family of students."""

import jax
import pytest

from dinojax.data import tiles
from dinojax.runs.scalars import read_metrics
from dinojax.train import finish

RECIPE = """
from dinojax.configs import tiny

def get_config():
    c = tiny.smoke(tiny.get_config())
    c.distill.enabled = True
    c.distill.teacher = "smoke:tiny"
    c.crops.patch_size = 8  # as one and the teacher see them; two sees them reduced by two
    return c

def one(c):
    c.model.update(width=8, num_heads=1)
    return c

def two(c):
    c.model.update(depth=1, patch_size=4)
    return c

STUDENTS = {"one": one, "two": two}
"""

COMPOSED = 1e-4  # two steps, with Sinkhorn over another number of parts


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """Few tiles, no last page, and every program compiled once."""
    settings = {
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir
        or str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "SPLITS", dict.fromkeys(tiles.SPLITS, 64))
        patch.setattr(finish, "finish", lambda *args, **options: None)
        yield
    for name, value in before.items():
        jax.config.update(name, value)


def same_rows(directory, other, name: str) -> None:
    for ours, theirs in zip(
        *(read_metrics(d / name / "metrics.jsonl") for d in (directory, other)), strict=True
    ):
        assert ours["step"] == theirs["step"]
        for term in ("total", "dino_global", "dino_local", "ibot", "koleo"):
            assert ours[term] == pytest.approx(theirs[term], rel=1e-5), (ours["step"], term)

"""A ViT and a ConvNeXt under one teacher: the same crops, in the resolution of each."""

import jax
import pytest

from dinojax import config as configs
from dinojax.distill import loop as distill_loop
from dinojax.distill import placement
from dinojax.train import loop
from tests.support import small
from tests.support.family import COMPOSED, quick, same_rows  # noqa: F401

RECIPE, NAMES = "distill_all_7b", ("convnext_tiny", "vits")
# What is left out of the recipe's `smoke` compiles longest and is tested elsewhere.
SMALL = (
    *("data.source=tiles", "log.pictures=False", "log.every=1", "crops.num_local=1"),
    *("augment.blur_rates=0.0,0.0,0.0", "model.depth=1"),
    *("precision.compute=float32", "distill.compute=float32"),
    "optim.eps=1.0",  # steps along the gradient: of a smaller one Adam magnifies the rounding
)


def load(*overrides: str) -> dict:
    """Two students of the recipe, in its first stage."""
    found = configs.load_students(RECIPE, [*SMALL, *overrides], smoke=True)
    return {name: found[name][:1] for name in NAMES}


def test_students_that_are_not_trained_shrink_to_ones_that_are():
    found = {name: each[0] for name, each in configs.load_students(RECIPE, smoke=True).items()}
    assert len(found) == 9
    for name, config in found.items():
        trained = found["convnext_tiny" if name.startswith("convnext") else "vits"]
        changed = [key for key, *_ in configs.diff(trained, config)]
        assert all(key.startswith(("model.name", "schedules.")) for key in changed), changed


@pytest.mark.exhaustive  # apart: test_distill.py; a ConvNeXt: test_convnext_student.py
def test_a_vit_and_a_convnext_learn_apart_as_each_alone(tmp_path, monkeypatch):
    """Each on a device of its own, from one forward pass over both; then each with `train`."""
    monkeypatch.setattr(placement, "costs", lambda students, teacher: dict.fromkeys(students, 1.0))
    shares = [f"{name}:distill.share=1" for name in NAMES]
    together = load("mesh.devices=2", "distill.place=apart", *shares)
    states = jax.device_get(distill_loop.distill(together, tmp_path / "family"))
    for name, (config,) in load("mesh.devices=1").items():
        alone = jax.device_get(loop.train(config, tmp_path / "alone" / name))
        assert states[name].step == alone.step == 2
        small.assert_close(states[name], alone, COMPOSED)
        same_rows(tmp_path / "family", tmp_path / "alone", name)

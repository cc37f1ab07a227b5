"""Backbones by name: what a config builds, what it refuses, and a DINOv2 backbone in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.models import zoo
from dinojax.models.convnext import ConvNext
from dinojax.models.vit import Vit
from dinojax.sharding import mesh
from dinojax.train import program
from tests.support import small

DINOV2 = ("model.name=dinov2_vits", "rope.rescale=None")
CONVNEXT = (
    *("model.name=convnext_tiny", "model.patch_size=32", "knn.crop_size=32", "knn.resize_size=32"),
    *("crops.global_size=64", "crops.local_size=32", "distill.enabled=True"),
)


def backbone(config):
    return zoo.backbone(
        config.model, config.rope, channels=3, attention="plain", dtype=jnp.dtype(jnp.float32)
    )


def test_a_convnext_is_built_by_name():
    whole = ("model.width=None", "model.depth=None", "model.drop_path=0.1")
    net = backbone(small.config(*CONVNEXT, *whole))
    assert isinstance(net, ConvNext)
    assert (net.spec.depths, net.spec.width, net.spec.drop_path) == ((3, 3, 9, 3), 768, 0.1)
    assert (net.spec.patch_size, net.spec.grid(224, 100)) == (32, (7, 3))
    spec = backbone(small.config(*CONVNEXT, "model.width=64", "model.depth=2")).spec
    assert (spec.depths, spec.widths) == ((2, 2, 2, 2), (8, 16, 32, 64))


def test_a_convnext_cannot_be_pretrained():
    """An evaluation needs no teacher, so networks alone are made; their loss is refused."""
    given = [key for key in CONVNEXT if key != "distill.enabled=True"]
    with pytest.raises(ValueError, match="'convnext_tiny' cannot be pretrained.*no tokens to hide"):
        small.config(*given)
    config = small.config(*CONVNEXT).replaced({"distill.enabled": False})
    built = program.build(config, mesh.make("dp", 1))
    with pytest.raises(ValueError, match="no tokens to hide: it needs a frozen teacher"):
        jax.eval_shape(built.step, *built.abstract_inputs())


def test_a_dinov2_backbone_has_learned_positions_and_no_rope():
    net = backbone(small.config(*DINOV2, "model.position_size=32", "model.position_offset=0"))
    assert isinstance(net, Vit)
    spec = net.spec
    assert (spec.position, spec.position_size, spec.position_offset) == ("learned", 32, 0.0)
    own = backbone(small.config(*DINOV2, "model.position=rope"))
    assert own.spec.position == "rope"


def test_settings_without_effect_are_left_unread():
    learned = small.config(*DINOV2, "rope.base=50")
    backbone(learned)
    assert "rope.base" in learned.unread() and "model.position" not in learned.unread()
    rope = small.config("model.position_size=64")
    backbone(rope)
    assert "model.position_size" in rope.unread() and "rope.rescale" not in rope.unread()


def test_errors_name_the_key():
    with pytest.raises(ValueError, match="model.position_size=36 is not a multiple.*patch_size=8"):
        backbone(small.config(*DINOV2, "model.position_size=36"))
    with pytest.raises(ValueError, match="'vitxl' is not in the zoo.*dinov2_vits.*convnext_tiny"):
        backbone(small.config("model.name=vitxl"))
    with pytest.raises(ValueError, match="patch_size=8, but model.name='convnext_tiny'.*to 32"):
        backbone(small.config("model.name=convnext_tiny", "distill.enabled=True"))
    with pytest.raises(ValueError, match="model.width=20 is not a multiple of 8"):
        backbone(small.config(*CONVNEXT, "model.width=20"))
    config = small.config("model.name=vits")
    with pytest.raises(ValueError, match="'vits' is no ConvNeXt"):
        zoo.convnext_spec(config.model, channels=3, dtype=jnp.dtype(jnp.float32))


@pytest.mark.slow
def test_a_dinov2_backbone_takes_a_training_step_at_its_own_sizes():
    """Patches of 14 pixels, crops of 224 and 98: the loss is finite and every part learns."""
    step = small.compiled(
        small.config(
            *(*DINOV2, "model.patch_size=14", "model.ffn=swiglu_fused", "mesh.devices=1"),
            *("crops.global_size=224", "crops.local_size=98", "crops.num_local=1"),
            *("batch_size=2", "group_size=2", "knn.crop_size=224", "knn.resize_size=224"),
        )
    )
    after, seen = step()
    assert np.isfinite(seen["scalars"]["total"])
    backbone = seen["grads"]["backbone"]
    assert backbone["positions"].shape == (1 + 16 * 16, 16)
    assert (np.abs(backbone["positions"]).max(axis=1) > 0).all()
    mlp = backbone["blocks"]["mlp"]
    for grads in (mlp["w12"]["kernel"], mlp["w3"]["kernel"], backbone["mask_token"]):
        assert np.isfinite(grads).all() and np.abs(grads).max() > 0
    before = small.numbers(step.program).student["backbone"]["positions"]
    assert not small.same(after.student["backbone"]["positions"], before)

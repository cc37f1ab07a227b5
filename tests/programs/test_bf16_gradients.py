"""Gradients in bfloat16 compute are as near to float32 as bfloat16 activations allow."""

import pytest

from dinojax.models.convnext import ConvNextSpec
from dinojax.models.vit import VitSpec
from tests.programs import bf16_gradients as gradients
from tests.support.library_models import needs

# Images and pixels: 3,152 tokens of a ViT, 4,096 places of the first stage of a ConvNeXt.
SIZES = {VitSpec: (16, 224), ConvNextSpec: (16, 64)}
SMALL = {
    **{
        name: lambda spec=spec: gradients.Network(spec, *SIZES[type(spec)])  # type: ignore[misc]
        for name, spec in gradients.SPECS.items()
    },
    "head and loss": lambda: gradients.HeadAndLoss(3000),
    "positions": lambda: gradients.Positions(2),
}

NETWORKS = ("vit", "vit, gated", "vit, learned", "convnext")


@pytest.mark.parametrize(
    "name",
    ["positions", "head and loss", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS)],
)
def test_gradients_of_all_parameters_are_within_two_hundredths_of_float32(name):
    one = SMALL[name]()
    found = gradients.errors(one.ours(gradients.HALF), one.ours(gradients.FULL))
    assert max(found.values()) < 0.02, found


@pytest.mark.exhaustive
def test_they_are_at_most_half_as_far_again_as_those_of_pytorch():
    needs("meta")
    for case, name, ours, theirs in gradients.table(images=32):
        assert ours <= 1.5 * theirs, (case, name, ours, theirs)

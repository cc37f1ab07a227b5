"""Released heads in and out. Names and shapes at released sizes: tests/golden, released_heads."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from dinojax.tasks import names, released
from dinojax.tasks.dpt import Dpt, DptSpec
from dinojax.weights.tensors import held, open_tensors


def small(seed=0):
    module = Dpt(DptSpec((4, 4, 4, 4), width=4, hidden=4, outputs=3, readout=True))
    levels = [(np.zeros((1, 2, 2, 4), np.float32), np.zeros((1, 4), np.float32))] * 4
    return jax.tree.map(
        lambda x: np.asarray(x) + np.float32(0.01),
        nn.meta.unbox(module.init(jax.random.key(seed), levels, train=True)),
    )


def test_an_export_is_read_back_to_the_bit(tmp_path):
    variables, path = small(), tmp_path / "head.safetensors"
    released.export(variables, path, {})
    back, report = released.read(open_tensors(path), variables, source=str(path))
    assert report.filled == report.ignored == ()
    assert all(map(np.array_equal, jax.tree.leaves(variables), jax.tree.leaves(back)))


def test_a_backbone_beside_the_head_is_left_aside():
    variables = small()
    tensors = {n: held(x) for n, x in names.from_ours(variables).items()}
    tensors["backbone.0.cls_token"] = held(np.ones(3, np.float32))
    assert released.read(tensors, variables, source="file")[1].matched == 72


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("project.conv.bias"), r"1 missing: project\.conv\.bias"),
        (lambda t: t.update(other=held(np.ones(2, np.float32))), "1 unexpected: other"),
        (
            lambda t: t.update({"project.conv.bias": held(np.ones(5, np.float32))}),
            r"project\.conv\.bias is \(5,\), not \(4,\)",
        ),
    ],
)
def test_a_file_that_is_not_this_head_in_every_tensor_is_refused(change, message):
    variables = small()
    tensors = {n: held(x) for n, x in names.from_ours(variables).items()}
    change(tensors)
    with pytest.raises(ValueError, match=message):
        released.read(tensors, variables, source="file")


def test_second_names_of_one_tensor_must_agree():
    first, second = held(np.zeros(2, np.float32)), held(np.ones(2, np.float32))
    tensors = {"class_embed.0.bias": first, "transformer.decoder.class_embed.0.bias": second}
    with pytest.raises(ValueError, match="which are one tensor"):
        released.read(tensors, {}, source="file")

"""Reference names and layouts, to ours and back."""

import numpy as np
import pytest

from dinojax.weights.meta import from_ours, our_path, to_ours


def tensors(depth=2, width=8, hidden=12, registers=2):
    """Reference tensors of a small backbone, every entry different."""
    shapes = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, registers, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "local_cls_norm.bias": (width,),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.qkv.bias": (3 * width,),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.ls1.gamma": (width,),
            f"blocks.{i}.mlp.fc1.weight": (hidden, width),
            f"blocks.{i}.mlp.w3.bias": (width,),
        }
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


HEAD = {
    "mlp.0.weight": np.arange(12.0).reshape(4, 3),
    "mlp.0.bias": np.arange(4.0),
    "mlp.2.weight": np.arange(8.0).reshape(2, 4),
    "last_layer.weight": np.arange(10.0).reshape(5, 2),
}


def test_a_backbone_has_our_shapes_and_the_same_products():
    theirs = tensors()
    ours = to_ours(theirs, num_heads=2)
    assert ours["patch_embed"]["kernel"].shape == (4, 4, 3, 8)
    assert ours["cls_token"].shape == ours["mask_token"].shape == (8,)
    assert ours["registers"].shape == (2, 8)
    attention = ours["blocks"]["attn"]
    x = np.random.default_rng(1).normal(size=8)
    qkv = np.einsum("d,dcae->cae", x, attention["qkv"]["kernel"][1]) + attention["qkv"]["bias"][1]
    expected = theirs["blocks.1.attn.qkv.weight"] @ x + theirs["blocks.1.attn.qkv.bias"]
    np.testing.assert_allclose(qkv, expected.reshape(3, 2, 4), rtol=1e-5)
    out = np.einsum("ae,aed->d", x.reshape(2, 4), attention["proj"]["kernel"][0])
    np.testing.assert_allclose(out, theirs["blocks.0.attn.proj.weight"] @ x, rtol=1e-5)
    np.testing.assert_array_equal(ours["blocks"]["scale1"][1], theirs["blocks.1.ls1.gamma"])


def test_back_and_forth_is_the_identity_without_buffers():
    theirs = tensors()
    buffers = {"rope_embed.periods": np.ones(4), "blocks.0.attn.qkv.bias_mask": np.ones(24)}
    back = from_ours(to_ours(theirs | buffers, num_heads=2))
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        {"mlp.weight": HEAD["mlp.0.weight"], "last_layer.weight": HEAD["last_layer.weight"]},
        {
            "mlp.0.weight": HEAD["mlp.0.weight"],
            "mlp.2.weight": HEAD["mlp.2.weight"],
            "last_layer.weight_v": HEAD["last_layer.weight"],
            "last_layer.weight_g": np.ones((5, 1)),
        },
    ],
    ids=["dinov3", "one layer", "dinov2"],
)
def test_heads_go_back_and_forth(head):
    ours = to_ours(head)
    assert ours["layer0"]["kernel"].shape == (3, 4)
    assert ours["prototypes"]["kernel"].shape == (2, 5)
    back = from_ours(ours)
    assert back.keys() == head.keys()
    for name, tensor in head.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_errors_name_the_parameter():
    with pytest.raises(ValueError, match="'blocks.0.attn.gate.weight' is not a parameter"):
        our_path("blocks.0.attn.gate.weight")
    theirs = tensors()
    with pytest.raises(ValueError, match="needs num_heads"):
        to_ours(theirs)
    del theirs["blocks.0.ls1.gamma"]
    with pytest.raises(ValueError, match="blocks.scale1 is missing in block 0 of 2"):
        to_ours(theirs, num_heads=2)


def test_dinov2_names_go_back_and_forth_and_may_come_in_chunks():
    """Positions, registers under their other name, and the gate in the first half of w12."""
    rng = np.random.default_rng(0)
    theirs = {
        "pos_embed": rng.normal(size=(1, 5, 6)),
        "blocks.0.mlp.w12.weight": rng.normal(size=(8, 6)),
        "blocks.0.mlp.w12.bias": rng.normal(size=8),
        "blocks.1.mlp.w12.weight": rng.normal(size=(8, 6)),
        "blocks.1.mlp.w12.bias": rng.normal(size=8),
    }
    ours = to_ours(theirs)
    assert ours["positions"].shape == (5, 6)
    kernel, bias = (ours["blocks"]["mlp"]["w12"][leaf][1] for leaf in ("kernel", "bias"))
    x = rng.normal(size=6)
    both = theirs["blocks.1.mlp.w12.weight"] @ x + theirs["blocks.1.mlp.w12.bias"]
    np.testing.assert_allclose(np.einsum("d,dcf->cf", x, kernel) + bias, both.reshape(2, 4))
    back = from_ours(ours)
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(back[name], tensor)
    chunked = {name.replace("blocks.", "blocks.0."): tensor for name, tensor in theirs.items()}
    assert "blocks.0.1.mlp.w12.bias" in chunked
    again = to_ours(chunked)
    np.testing.assert_array_equal(again["blocks"]["mlp"]["w12"]["kernel"][1], kernel)
    assert our_path("register_tokens") == (("registers",), None)


def convnext_tensors():
    shapes = {"norm.weight": (8,), "norm.bias": (8,)}
    shapes |= {"downsample_layers.0.0.weight": (2, 3, 4, 4), "downsample_layers.0.1.weight": (2,)}
    shapes |= {"downsample_layers.2.0.bias": (4,), "downsample_layers.2.1.weight": (6, 4, 2, 2)}
    for stage, block in ((1, 0), (3, 0), (3, 1)):
        shapes |= {
            f"stages.{stage}.{block}.gamma": (8,),
            f"stages.{stage}.{block}.dwconv.weight": (8, 1, 7, 7),
            f"stages.{stage}.{block}.norm.weight": (8,),
            f"stages.{stage}.{block}.pwconv1.weight": (12, 8),
            f"stages.{stage}.{block}.pwconv2.bias": (8,),
        }
    rng = np.random.default_rng(0)
    theirs = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return theirs | {"norms.3.weight": theirs["norm.weight"], "norms.3.bias": theirs["norm.bias"]}


def test_convnext_names_go_back_and_forth():
    theirs = convnext_tensors()
    ours = to_ours(theirs)
    assert ours["downsamples_0"]["conv"]["kernel"].shape == (4, 4, 3, 2)
    assert ours["downsamples_0"]["norm"]["scale"].shape == (2,)
    assert ours["downsamples_2"]["norm"]["bias"].shape == (4,)
    assert ours["stages_1"]["dwconv"]["kernel"].shape == (1, 7, 7, 1, 8)
    assert ours["stages_3"]["pwconv1"]["kernel"].shape == (2, 8, 12)
    np.testing.assert_array_equal(ours["stages_3"]["scale1"][1], theirs["stages.3.1.gamma"])
    back = from_ours(ours)
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_a_second_final_norm_that_differs_is_an_error():
    theirs = convnext_tensors() | {"norms.3.bias": np.ones(8)}
    with pytest.raises(ValueError, match="norms.3.bias is not the same as norm.bias"):
        to_ours(theirs)

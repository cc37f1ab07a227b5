"""Weights from outside are judged before they are used; each wrong file has a sentence of its own.

Files of PyTorch are in test_pickles.py.
"""

import dataclasses
import json
import os
import time

import numpy as np
import pytest

from dinojax.cli import main
from dinojax.weights import load as loading
from dinojax.weights import meta
from dinojax.weights.export import export
from dinojax.weights.tensors import held, open_tensors, write_safetensors
from dinojax.weights.writers import reference_buffers
from tests.support.library_models import needs
from tests.support.networks_small import (
    CONVNEXT,
    DINOV2_REGISTERS,
    PLAIN,
    RELEASED,
    SMOOTH,
    random_network,
)

GIVEN = {"depth": RELEASED.depth}


def folder(tmp_path, spec=RELEASED, format="hf"):
    """A folder as a library writes it: without our provenance and its digests."""
    out = tmp_path / format
    export(random_network(spec), out, format=format, certify=False)
    (out / "provenance.json").unlink()
    (out / "parity.json").unlink()
    return out


def changed(folder, name="config.json", **fields):
    """The file with other fields; a value of `...` takes the field out."""
    content = {**json.loads((folder / name).read_text()), **fields}
    content = {key: value for key, value in content.items() if value is not ...}
    (folder / name).write_text(json.dumps(content))
    return folder


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        loading.load(path, **options)
    assert str(caught.value).startswith(str(path)), "the file is named"


def file(tmp_path, change=dict, spec=RELEASED, name="model.safetensors"):
    """Tensors in the reference's names, without anything beside them."""
    tensors = {**random_network(spec).tensors, **reference_buffers(spec)}
    write_safetensors(tmp_path / name, change(tensors), {})
    return tmp_path / name


# -- what a config says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("rope_theta", 0, "finite positive"),
        ("rope_theta", float("nan"), "finite positive"),
        ("rope_theta", float("inf"), "finite positive"),
        ("rope_theta", "100", "finite positive"),
        ("hidden_size", 32, "the tensors have width 16"),
        ("patch_size", 16, "the tensors have patch_size 4"),
        ("num_channels", 1, "the tensors have channels 3"),
        ("num_register_tokens", 4, "the tensors have num_registers 2"),
        ("num_register_tokens", -1, "whole number of at least 0"),
        ("intermediate_size", 48, "the tensors have hidden 64"),
        ("num_hidden_layers", 4, "the tensors have depth 3"),
        ("num_hidden_layers", 10**9, "the tensors have depth 3"),
        ("num_hidden_layers", 3.0, "whole number"),
        ("num_hidden_layers", True, "whole number"),
        ("num_attention_heads", "2", "whole number"),
        ("num_attention_heads", 0, "whole number"),
        ("num_attention_heads", 3, "width 16 cannot be cut into num_heads=3"),
        ("num_attention_heads", 8, "each a multiple of 4"),
        ("layer_norm_eps", 1e-3, "known are"),
        ("layer_norm_eps", [], "finite positive"),
        ("key_bias", True, "the tensors have key_bias False"),
        ("query_bias", False, "the tensors have qkv_bias True"),
        ("mlp_bias", False, "the tensors have ffn_bias True"),
        ("use_gated_mlp", 1, "true or false"),
        ("hidden_act", "relu", "DINOv3 has gelu"),
        ("model_type", ["dinov3_vit"], "model_type"),
        ("model_type", ..., "config.json has no model_type"),
        ("rope_theta", None, "finite positive"),
    ],
)
def test_a_value_of_a_config_that_is_none_or_that_the_tensors_contradict_is_refused(
    tmp_path, key, value, told
):
    began = time.monotonic()
    refused(changed(folder(tmp_path), **{key: value}), rf"{key}(.|\n)*{told}|{told}")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "spec, format, key, value, told",
    [
        (PLAIN, "hf", "image_size", 32, "position_size 16"),
        (PLAIN, "hf", "mlp_ratio", 2, "hidden 64"),
        (DINOV2_REGISTERS, "hf", "model_type", "dinov2", "the tensors have num_registers 2"),
        (PLAIN, "hf", "use_swiglu_ffn", True, "gated False"),
        (CONVNEXT, "hf", "depths", [1, 2, 3, 1], "depths"),
        (CONVNEXT, "hf", "hidden_sizes", [8, 12, 16, 32], "widths"),
        (CONVNEXT, "hf", "depths", [1, 2], "list of 4"),
        (CONVNEXT, "hf", "num_channels", 4, "channels 3"),
        (RELEASED, "timm", "model_args", [], "object with keys"),
        (RELEASED, "timm", "architecture", 7, "must be text"),
        (RELEASED, "dinojax", "backbone", {"width": 16}, "needs depth, num_heads"),
        (RELEASED, "dinojax", "backbone", "vit", "object with keys"),
        (RELEASED, "dinojax", "backbone", {"family": []}, "family"),
    ],
)
def test_so_are_those_of_other_families_and_formats(tmp_path, spec, format, key, value, told):
    refused(changed(folder(tmp_path, spec, format), **{key: value}), told)


@pytest.mark.parametrize(
    "spec, field, value, told",
    [
        (RELEASED, "embed_dim", 32, "width 16"),
        (RELEASED, "depth", 10**9, "depth 3"),
        (RELEASED, "num_reg_tokens", 1, "num_registers 2"),
        (RELEASED, "rope_temperature", 0, "finite positive"),
        (RELEASED, "rope_type", "cat", "read is 'dinov3'"),
        (RELEASED, "mlp_ratio", 2.0, "hidden 64"),
        (RELEASED, "new_kind_of_attention", True, "this argument is not read"),
        (SMOOTH, "img_size", 32, "position_size 16"),
        (SMOOTH, "pre_norm", True, "read is False"),
        (SMOOTH, "act_layer", "quick_gelu", "read are gelu"),
        (SMOOTH, "init_values", None, "LayerScale"),
        (CONVNEXT, "dims", [8, 12, 16, 32], "widths"),
        (CONVNEXT, "kernel_sizes", 5, "read is 7"),
    ],
)
def test_no_argument_of_a_timm_folder_is_passed_over(tmp_path, spec, field, value, told):
    out = folder(tmp_path, spec, "timm")
    args = json.loads((out / "config.json").read_text())["model_args"]
    refused(changed(out, model_args={**args, field: value}), told)


@pytest.mark.parametrize(
    "text, told",
    [
        ("[]", "the whole is \\[\\]; expected an object"),
        ("null", "the whole is None"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[" * 100_000, "thousands of levels"),
        ('{"model_type": "dinov2", "model_type": "dinov3_vit"}', "stands twice"),
        ('{"depth": ' + "1" * 5000 + "}", "is not JSON"),
    ],
)
def test_a_config_that_is_no_object_of_json_is_refused_by_name(tmp_path, text, told):
    out = folder(tmp_path)
    (out / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"config.json.*{told}"):
        loading.load(out)


@pytest.mark.parametrize(
    "overrides, told",
    [
        ({"depth": 10**9}, "depth=1000000000, but the tensors have depth 3"),
        ({"num_heads": 0}, "num_heads=0: it must be a whole number"),
        ({"norm": "batchnorm"}, "norm='batchnorm': it must be one of layernorm"),
        ({"rope.base": float("nan")}, "finite positive"),
        ({"mask_k_bias": 1}, "true or false"),
        ({"patch_size": 8}, "the tensors have patch_size 4"),
    ],
)
def test_a_field_that_is_given_by_hand_is_judged_as_those_of_a_file(tmp_path, overrides, told):
    refused(file(tmp_path), told, overrides={**GIVEN, **overrides})


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.bool_])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype):
    name = "blocks.1.mlp.fc1.weight"

    def change(tensors):
        return {**tensors, name: held(tensors[name].read().astype(dtype))}

    refused(file(tmp_path, change), f"1 of no floating-point numbers: {name} is", overrides=GIVEN)


def test_shapes_that_no_backbone_has_are_named(tmp_path):
    for name, shape in (
        ("patch_embed.proj.weight", (16, 48)),
        ("patch_embed.proj.weight", (16, 3, 4, 2)),
        ("storage_tokens", (2, 16)),
        ("rope_embed.periods", (3,)),
        ("rope_embed.periods", (0,)),
        ("blocks.0.mlp.fc1.weight", (64,)),
        ("blocks.0.attn.qkv.bias_mask", (5,)),
    ):
        other = {name: held(np.ones(shape, np.float32))}
        path = file(tmp_path, lambda tensors, other=other: {**tensors, **other})
        refused(
            path,
            name.replace(".", r"\.") if "patch" not in name else "patch_embed",
            overrides=GIVEN,
        )


def test_masks_of_some_blocks_only_are_refused(tmp_path):
    lost = "blocks.0.attn.qkv.bias_mask"
    path = file(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != lost})
    refused(path, "2 of 3 blocks have a mask on the bias of k", overrides=GIVEN)


@pytest.mark.parametrize(
    "spec, format", [(PLAIN, "hf"), (DINOV2_REGISTERS, "meta"), (SMOOTH, "timm")]
)
def test_without_its_learned_positions_a_backbone_is_not_read_as_one_with_rope(
    tmp_path, spec, format
):
    out = folder(tmp_path, spec, format)
    (weights,) = out.glob("model.*")
    lost = ("pos_embed", "embeddings.position_embeddings")
    kept = {n: t for n, t in open_tensors(weights).items() if n not in lost}
    kept = {n: held(t.read()) for n, t in kept.items()}
    weights.unlink()
    write_safetensors(out / "model.safetensors", kept, {})
    refused(out, "pos_embed|architecture 'vit_small_patch14_dinov2'")
    if format == "meta":
        (out / "config.json").unlink()
        refused(out, "register_tokens are DINOv2's", overrides=GIVEN)


def test_a_block_far_beyond_the_others_costs_nothing(tmp_path):
    far = {"blocks.999999999.norm1.weight": held(np.ones(16, np.float32))}
    path = file(tmp_path, lambda tensors: {**tensors, **far})
    refused(path, r"blocks\.999999999\.\* but no block 3 before", overrides={})


# -- the index of a sharded folder -----------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards and their index, and a function that writes another index."""
    out = folder(tmp_path)
    tensors = open_tensors(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    halves = {"a.safetensors": list(tensors)[::2], "b.safetensors": list(tensors)[1::2]}
    for name, names in halves.items():
        write_safetensors(out / name, {key: tensors[key] for key in names}, {"format": "pt"})
    table = {key: name for name, names in halves.items() for key in names}

    def write(weight_map=table):
        index = out / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return out

    write()
    return out, table, tensors, write


def test_each_tensor_comes_from_the_file_that_the_index_names(sharded):
    out, _, tensors, _ = sharded
    found = loading.open_source(out).tensors
    assert set(found) == set(tensors)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), tensors[name].read())


def test_a_tensor_that_lies_in_a_second_file_is_refused(sharded):
    out, table, tensors, _ = sharded
    name = next(name for name, shard in table.items() if shard == "a.safetensors")
    second = {key: tensors[key] for key, shard in table.items() if shard == "b.safetensors"}
    write_safetensors(out / "b.safetensors", {**second, name: tensors[name]}, {})
    with pytest.raises(ValueError, match=rf"{name} lies in b.safetensors and.* a.safetensors"):
        loading.load(out)


@pytest.mark.parametrize(
    "shard, told",
    [
        ("../outside.safetensors", "no file of its folder"),
        ("/tmp/outside.safetensors", "no file of its folder"),
        ("sub/../a.safetensors", "no file of its folder"),
        ("b.safetensors", "does not hold|lies in a.safetensors"),
        ("model.safetensors.index.json", "names no file"),
        (7, "names no file"),
        ("", "names no file"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(sharded, tmp_path, shard, told):
    out, table, tensors, write = sharded
    write_safetensors(tmp_path / "outside.safetensors", tensors, {})
    name = next(name for name, file in table.items() if file == "a.safetensors")
    write({**table, name: shard})
    with pytest.raises(ValueError, match=told):
        loading.load(out)


def test_an_index_must_name_every_tensor_and_every_file_must_be_there(sharded):
    out, table, _, write = sharded
    first = next(iter(table))
    write({name: shard for name, shard in table.items() if name != first})
    with pytest.raises(ValueError, match=f"holds {first}, of which .*index.json says nothing"):
        loading.load(out)
    write({**table, first: "c.safetensors"})
    with pytest.raises(FileNotFoundError, match="c.safetensors does not exist, but .*index.json"):
        loading.load(out)
    write([])
    with pytest.raises(ValueError, match="has no weight_map"):
        loading.load(out)


def test_a_shard_may_be_a_link_into_the_cache_of_hugging_face_and_to_nowhere_else(
    sharded, tmp_path
):
    out, *_ = sharded
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "1"
    blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
    for path in out.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert loading.load(snapshot).report.share == 1.0
    (snapshot / "a.safetensors").unlink()
    (blobs / "a.safetensors").rename(tmp_path / "a.safetensors")
    (snapshot / "a.safetensors").symlink_to(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is a link to .*outside the folder"):
        loading.load(snapshot)


def test_whole_weights_beside_an_index_are_refused(sharded):
    out, _, tensors, _ = sharded
    write_safetensors(out / "model.safetensors", tensors, {})
    with pytest.raises(FileNotFoundError, match="model.safetensors beside the files of"):
        loading.load(out)


# -- names -----------------------------------------------------------------------------------------

TWINS = {
    "wrapped": ("norm.bias", "module.norm.bias"),
    "compiled": ("blocks.1.norm1.bias", "blocks.1._orig_mod.norm1.bias"),
    "in chunks": ("blocks.1.norm1.bias", "blocks.0.1.norm1.bias"),
    "registers": ("storage_tokens", "register_tokens"),
}


@pytest.mark.parametrize("kind", TWINS)
def test_two_names_that_become_one_are_refused_and_both_named(tmp_path, kind):
    name, twin = TWINS[kind]
    path = file(tmp_path, lambda tensors: {**tensors, twin: tensors[name]})
    both = f"{name} and {twin} are both|{twin} and {name} are both"
    refused(path, both.replace(".", r"\."), overrides=GIVEN)


@pytest.mark.parametrize(
    "format, name, twin",
    [
        ("hf", "layer.1.norm1.bias", "model.layer.1.norm1.bias"),
        ("hf", "layer.1.attention.q_proj.weight", "model.layer.1.attention.q_proj.weight"),
        ("hf", "layer.1.attention.q_proj.weight", "layer.01.attention.q_proj.weight"),
        ("timm", "blocks.1.attn.q_bias", "blocks.1.attn.qkv.bias"),
    ],
)
def test_so_are_twins_in_the_names_of_a_library(tmp_path, format, name, twin):
    out = folder(tmp_path, RELEASED, format)
    tensors = open_tensors(out / "model.safetensors")
    write_safetensors(out / "model.safetensors", {**tensors, twin: tensors[name]}, {})
    refused(out, "are both")


@pytest.mark.parametrize("left", ["q", "v"])
def test_half_of_a_bias_is_not_dropped(tmp_path, left):
    out = folder(tmp_path, RELEASED, "timm")
    tensors = open_tensors(out / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.endswith(f"attn.{left}_bias")}
    write_safetensors(out / "model.safetensors", kept, {})
    config = json.loads((out / "config.json").read_text())
    changed(out, model_args={**config["model_args"], "qkv_bias": False})
    refused(out, "3 unexpected: blocks.0.attn.[qv]_bias")


WRAPPED = (
    "module.{}",
    "_orig_mod.{}",
    "module._orig_mod.{}",
    "_fsdp_wrapped_module.{}",
    "backbone._orig_mod.{}",
    "module.backbone.{}",
)


@pytest.mark.parametrize("pattern", WRAPPED)
def test_wrappers_are_taken_off_wherever_they_stand(tmp_path, pattern):
    def wrap(tensors):
        inner = {
            n.replace(".attn.", "._checkpoint_wrapped_module.attn."): t for n, t in tensors.items()
        }
        return {pattern.format(name): tensor for name, tensor in inner.items()}

    assert loading.load(file(tmp_path, wrap), overrides=GIVEN).report.share == 1.0


def test_the_prefixes_of_several_networks_are_listed_and_each_loads(tmp_path):
    def both(tensors):
        other = random_network(RELEASED, seed=1).tensors
        student = {f"student.net.{n}": t for n, t in tensors.items()}
        return (
            student
            | {f"teacher.{n}": t for n, t in {**tensors, **other}.items()}
            | {"projection.weight": tensors["norm.bias"]}
        )

    path = file(tmp_path, both)
    refused(path, r"prefixes 'student\.net\.', 'teacher\.': give", overrides=GIVEN)
    refused(path, r"begins with 'studnet'\. Backbones begin", overrides=GIVEN, prefix="studnet")
    for prefix, seed in (("student.net.", 0), ("student.net", 0), ("teacher.", 1)):
        found = loading.load(path, overrides=GIVEN, prefix=prefix).params["norm"]["bias"]
        want = random_network(RELEASED, seed=seed).tensors["norm.bias"].read()
        np.testing.assert_array_equal(found, want)


def test_export_and_embed_take_a_prefix_as_import_does(tmp_path, capsys):
    path = file(tmp_path, lambda tensors: {f"ema.{n}": t for n, t in tensors.items()})
    words = ["--set", "depth=3", "--prefix", "ema."]
    out = str(tmp_path / "out")
    assert main.main(["import", "--from", str(path), "--out", out, *words]) == main.FINISHED
    export_words = ["export", "--weights", str(path), "--format", "hf", "--no-certificate"]
    assert main.main([*export_words, "--out", out + "2", *words]) == main.FINISHED
    (tmp_path / "none").mkdir()
    embed_words = ["embed", "--weights", str(path), "--data", str(tmp_path / "none")]
    assert main.main([*embed_words, "--out", out + "3", *words]) == main.REFUSED
    told = capsys.readouterr()
    assert "100.000 %" in told.out and "prefix" not in told.err  # refused for want of images
    assert main.main([*embed_words, "--out", out + "3"]) == main.REFUSED
    assert "under the prefix 'ema.'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["attn.qkv.lora_A.default.weight", "attn.qkv.base_layer.weight", "norm1.ia3_l.default"]
)
def test_adapters_that_are_not_merged_have_a_sentence_of_their_own(tmp_path, name):
    def adapt(tensors):
        part = {f"base_model.model.blocks.0.{name}": tensors["norm.bias"]}
        return {f"base_model.model.{n}": t for n, t in tensors.items()} | part

    refused(
        file(tmp_path, adapt), r"adapters that are not merged.*merge_and_unload", overrides=GIVEN
    )


# -- networks that others release ------------------------------------------------------------------

# Sizes and options as published, in few blocks of small width. LingBot-Vision: bias of q and v
# where the MLP is plain, none where it is gated. EUPE: as DINOv3.
LINGBOT = dataclasses.replace(RELEASED, num_registers=4, patch_size=16, width=24)
LINGBOT_GIANT = dataclasses.replace(
    LINGBOT, ffn="swiglu", ffn_ratio=4.0, qkv_bias=False, mask_k_bias=False
)


@pytest.mark.parametrize("spec", [LINGBOT, LINGBOT_GIANT])
def test_the_layout_of_lingbot_vision_is_read(tmp_path, spec):
    found = loading.load(file(tmp_path, spec=spec), overrides={"depth": spec.depth})
    assert found.report.share == 1.0 and found.spec.norm == "layernorm_1e5"
    assert found.spec.qkv_bias == spec.qkv_bias and found.spec.num_heads == spec.num_heads


def test_the_smallest_eupe_is_known_by_its_size(tmp_path):
    spec = dataclasses.replace(RELEASED, width=192, depth=12, num_heads=3, num_registers=4)
    source = loading.open_source(file(tmp_path, spec=spec))
    _, found, report = loading.resolve(source, overrides={})
    assert (found.width, found.depth, found.num_heads) == (192, 12, 3) and report.share == 1.0
    without = file(
        tmp_path, lambda t: {n: x for n, x in t.items() if not meta.BUFFERS.fullmatch(n)}, spec
    )
    assert loading.resolve(loading.open_source(without), overrides={})[1].num_heads == 3


@pytest.mark.parametrize("name", ["vit_small_patch16_lingbot", "vit_tiny_patch16_dinov3_qkvb"])
def test_their_folders_from_timm_are_read(tmp_path, name):
    out = changed(folder(tmp_path, RELEASED, "timm"), architecture=name)
    assert loading.load(out).report.share == 1.0


@pytest.mark.parametrize(
    "name", ["vit_large_patch16_224", "vit_large_patch16_224.uni", "vit_giant_patch14_224"]
)
def test_a_timm_folder_is_read_by_its_tensors_whatever_the_name_of_its_function(tmp_path, name):
    out = changed(folder(tmp_path, SMOOTH, "timm"), architecture=name)
    found = loading.load(out)
    assert found.spec.num_heads == 2 and found.report.filled == ("mask_token",)
    args = json.loads((out / "config.json").read_text())["model_args"]
    changed(out, model_args={key: value for key, value in args.items() if key != "num_heads"})
    assert loading.load(out).spec.num_heads == 16  # of the function


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other people's libraries
def test_positions_of_registers_are_added_to_the_registers(tmp_path):
    """As in Virchow2: timm's table then holds cls, registers and patches."""
    needs("timm")
    import timm
    import torch

    sizes = dict(embed_dim=48, depth=3, num_heads=3, img_size=56, no_embed_class=False)
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, **sizes).eval()
    with torch.no_grad():
        model.pos_embed.copy_(torch.randn(1, 1 + 4 + 16, 48))
        model.reg_token.copy_(torch.randn(1, 4, 48))
    timm.models.save_for_hf(model, str(tmp_path), model_args=sizes, safe_serialization=True)
    images = np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32)
    with torch.inference_mode():
        want = model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    found = loading.load(tmp_path)(images)
    np.testing.assert_allclose(found.registers, want[:, 1:5], atol=1e-4)
    np.testing.assert_allclose(found.patches, want[:, 5:], atol=1e-4)


def test_a_function_that_computes_something_else_is_refused_by_name(tmp_path):
    out = folder(tmp_path, SMOOTH, "timm")
    for name in ("vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_rope_224"):
        refused(changed(out, architecture=name), f"architecture '{name}'")


# -- files of other kinds --------------------------------------------------------------------------


def test_each_kind_of_file_that_holds_no_weights_is_told(tmp_path):
    path = tmp_path / "model.safetensors"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for content, told in (
        (b"", r"is empty \(0 bytes\)"),
        (pointer, "pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html>Sign in", "holds text, no weights: '<!DOCTYPE html>"),
        (b"\0" * 5000, "begins with zeros"),
        (b"PK\x03\x04" + b"\x01" * 100, "is a PyTorch file; rename it to .pth"),
    ):
        path.write_bytes(content)
        refused(path, told)
    path.unlink()
    os.mkfifo(path)
    refused(path, "is no regular file")
    path.unlink()
    path.mkdir()
    with pytest.raises(FileNotFoundError, match="must hold one file of weights; found none"):
        loading.load(path)


def test_flattened_parameters_of_fsdp_are_told(tmp_path):
    name = "_fsdp_wrapped_module._flat_param"
    path = file(tmp_path, lambda tensors: {name: tensors["norm.bias"]})
    refused(path, "FSDP's flattened parameters.*FULL_STATE_DICT")


def test_a_checkpoint_of_several_processes_is_told_from_a_folder_of_weights(tmp_path):
    (tmp_path / ".metadata").touch(), (tmp_path / "__0_0.distcp").touch()
    refused(tmp_path, "is a checkpoint of torch.distributed.checkpoint.*dcp_to_torch")


def test_a_dtype_that_is_not_read_is_named(tmp_path):
    header = {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + b"\0" * 4
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path / "model.safetensors", "a has dtype F8_E4M3, which is not read; save it as")


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_on_export_leaves_constants_as_they_are(tmp_path, dtype):
    wide = dataclasses.replace(RELEASED, num_heads=1)  # more periods, so that some would be rounded
    out = tmp_path / "out"
    export(random_network(wide), out, format="meta", dtype=dtype, certify=False)
    found = loading.open_source(out).tensors
    want = reference_buffers(wide)["rope_embed.periods"].read()
    np.testing.assert_array_equal(found["rope_embed.periods"].read(), want)
    assert found["norm.bias"].dtype == np.dtype(dtype)
    assert loading.load(out).spec.rope.periods_dtype == "float32"


def test_a_value_beyond_the_asked_dtype_is_refused_not_written_as_infinity(tmp_path):
    network = random_network(RELEASED)
    large = {**network.tensors, "norm.bias": held(np.full(16, 1e6, np.float32))}
    network = dataclasses.replace(network, tensors=large)
    with pytest.raises(ValueError, match="norm.bias has values beyond float16"):
        export(network, tmp_path / "out", format="dinojax", dtype="float16", certify=False)
    assert not (tmp_path / "out").exists()

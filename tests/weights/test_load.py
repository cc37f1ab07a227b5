"""Loading: every tensor counted, and each kind of wrong file refused with its own message."""

import dataclasses
import importlib.util
import json
import pickle
import re
import shutil

import chex
import jax
import numpy as np
import pytest

import dinojax
from dinojax.weights import load as loading
from dinojax.weights import processors, report, specs
from dinojax.weights.certificate import TOLERANCE
from dinojax.weights.export import export
from dinojax.weights.tensors import Tensor, held, open_tensors, write_safetensors
from dinojax.weights.writers import reference_buffers
from tests.support.networks_small import (
    CONVNEXT,
    GATED,
    PLAIN,
    RELEASED,
    SMOOTH,
    TRAINED,
    WIDE,
    random_network,
)

FORMATS = ("meta", "hf", "timm", "dinojax")
GIVEN = {"depth": RELEASED.depth}  # a small depth is in no table of models, so it must be said


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The same network in every format, with digests and features but without certificates."""
    folder = tmp_path_factory.mktemp("exported")
    for format in FORMATS:
        # The library's proof is left to the tests that have it; fingerprints are wanted here.
        network = random_network(RELEASED)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dinojax.weights.libraries.missing", lambda format: "not asked for")
            export(network, folder / format, format=format)
    return folder


@pytest.fixture
def meta_file(tmp_path):
    """Writes tensors in the reference's names, without anything beside them."""

    def write(change=lambda tensors: tensors, spec=RELEASED, name="model.safetensors"):
        tensors = {**random_network(spec).tensors, **reference_buffers(spec)}
        write_safetensors(tmp_path / name, change(tensors), {})
        return tmp_path / name

    return write


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_detected_and_gives_the_same_features(exported, format):
    backbone = dinojax.load(exported / format)
    assert backbone.report.format == format
    assert backbone.report.share > 0.99 and backbone.report.cast == 0
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 12, 20, 3)).astype(np.float32)
    found, expected = backbone(images), dinojax.load(exported / "dinojax")(images)
    assert found.patches.shape == (2, 15, 16) and found.registers.shape == (2, 2, 16)
    np.testing.assert_array_equal(found.cls, expected.cls)
    np.testing.assert_array_equal(found.patches, expected.patches)
    own = random_network(RELEASED).preprocessing
    wanted = processors.expressed(own, 3)[0] if format == "hf" else own
    assert backbone.preprocessing == wanted


def test_the_report_counts_and_names(exported):
    told = dinojax.load(exported / "timm").report
    wanted = specs.expected(RELEASED)
    assert told.matched == len(wanted) - 1 and told.filled == ("mask_token",)
    assert told.elements == sum(np.prod(t.shape) for t in wanted.values()) - RELEASED.width
    assert "not in the file, as initialised: mask_token" in str(told)


@pytest.mark.parametrize("spec", [RELEASED, TRAINED, GATED, WIDE])
def test_a_bare_file_tells_the_spec_it_was_made_from(meta_file, spec):
    path = meta_file(spec=spec)
    given = {"depth": spec.depth, "norm": spec.norm}
    found, told, _ = loading.resolve(loading.open_source(path), overrides=given)
    same = dataclasses.replace(told, ffn=spec.ffn, ffn_ratio=spec.ffn_ratio)
    assert same == dataclasses.replace(spec, layer_scale=told.layer_scale)
    own = random_network(spec).tensors
    for name, tensor in own.items():
        np.testing.assert_array_equal(found[name].read(), tensor.read())


def test_bfloat16_files_are_cast_and_counted(meta_file, tmp_path):
    path = meta_file()
    half = tmp_path / "half.safetensors"
    write_safetensors(half, open_tensors(path), {}, np.dtype("bfloat16"))
    backbone = loading.load(half, overrides=GIVEN)
    assert backbone.report.cast == backbone.report.matched
    assert backbone.params["cls_token"].dtype == np.float32


def test_rounded_rope_periods_are_recognised(meta_file):
    def rounded(tensors):
        periods = tensors["rope_embed.periods"].read().astype("bfloat16").astype(np.float32)
        return {**tensors, "rope_embed.periods": held(periods)}

    wide = dataclasses.replace(RELEASED, num_heads=1)  # more periods, so that some are rounded
    backbone = loading.load(meta_file(rounded, wide), overrides=GIVEN)
    assert backbone.spec.rope.periods_dtype == "bfloat16"
    accepted = {**GIVEN, "rope.periods_dtype": "float32"}
    assert loading.load(meta_file(rounded, wide), overrides=accepted).spec.rope == RELEASED.rope


def test_a_mask_that_hides_the_whole_bias_is_folded_into_it(meta_file):
    def hide(tensors):
        masks = {n: held(np.zeros(t.shape)) for n, t in tensors.items() if n.endswith("bias_mask")}
        return {**tensors, **masks}

    backbone = loading.load(meta_file(hide), overrides=GIVEN)
    assert not np.any(backbone.params["blocks"]["attn"]["qkv"]["bias"])
    assert "3 bias masks hide more" in str(backbone.report)


def test_heads_beside_the_backbone_are_kept_apart(meta_file):
    def with_heads(tensors):
        inner = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        return {**inner, "dino_head.mlp.0.weight": held(np.ones((2, 2), np.float32))}

    path = meta_file(with_heads)
    assert list(loading.open_source(path).heads) == ["dino_head.mlp.0.weight"]
    assert loading.load(path, overrides=GIVEN).report.share == 1.0


# -- files that are refused ------------------------------------------------------------------------


def refused(path, message, **options):
    options.setdefault("overrides", GIVEN)
    with pytest.raises(ValueError, match=message):
        loading.load(path, **options)


def test_a_truncated_depth_is_refused(meta_file):
    cut = lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("blocks.2.")}  # noqa: E731
    refused(meta_file(cut), r"depth=3, but the tensors have depth 2 \(truncated")
    part = lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("blocks.2.mlp")}  # noqa: E731
    refused(meta_file(part), r"4 missing: blocks\.2\.(.|\n)*\(blocks 2 to 2 lack")
    refused(meta_file(cut), "2 blocks of width 16 are no DINO model: truncated", overrides={})


def test_a_wrong_prefix_is_refused_and_can_be_named(meta_file):
    path = meta_file(lambda tensors: {f"net.{n}": t for n, t in tensors.items()})
    refused(path, "begins under the prefix 'net.': give prefix='net.'")
    assert loading.load(path, overrides=GIVEN, prefix="net.").report.share == 1.0
    refused(path, "no name that begins with 'other.'", prefix="other.")


def test_swapped_q_and_k_are_refused(exported, tmp_path):
    shutil.copytree(exported / "hf", tmp_path / "hf")
    tensors = open_tensors(tmp_path / "hf" / "model.safetensors")
    names = ["layer.1.attention.q_proj.weight", "layer.1.attention.k_proj.weight"]
    swapped = {**tensors, names[0]: tensors[names[1]], names[1]: tensors[names[0]]}
    write_safetensors(tmp_path / "hf" / "model.safetensors", swapped, {"format": "pt"})
    refused(tmp_path / "hf", r"2 tensors are not those that were exported, such as layer\.1\.att")
    # Without digests, features of the test image still tell.
    provenance = json.loads((tmp_path / "hf" / "provenance.json").read_text())
    (tmp_path / "hf" / "provenance.json").write_text(json.dumps({**provenance, "digests": {}}))
    refused(tmp_path / "hf", "features of the test image are", overrides={})


def test_an_all_zero_file_is_refused(meta_file):
    def zero(tensors):
        kept = {n: held(np.zeros(t.shape, np.float32)) for n, t in tensors.items()}
        return {**kept, "rope_embed.periods": tensors["rope_embed.periods"]}

    refused(meta_file(zero), "weights hold nothing but zeros .*never filled")


def test_nan_is_refused(meta_file):
    def broken(tensors):
        return {**tensors, "norm.bias": held(np.full(16, np.nan, np.float32))}

    refused(meta_file(broken), r"1 tensors hold NaN or infinity \(norm.bias\)")


def test_a_wrong_rope_base_is_refused(meta_file):
    rope = dataclasses.replace(RELEASED.rope, base=1000.0)
    path = meta_file(spec=dataclasses.replace(RELEASED, rope=rope))
    refused(path, r"periods .* \(base 1000\) are not those of base 100.0")
    meant = {**GIVEN, "rope.base": 1000.0}
    assert loading.load(path, overrides=meant).spec.rope.base == 1000.0


def test_split_and_fused_qkv_are_told_apart(exported, meta_file):
    refused(exported / "hf", "format meta, but .* those of hf, which splits q, k", format="meta")
    refused(meta_file(), "format hf, but its names are those of meta, which fuses q", format="hf")
    halves = {"blocks.0.attn.q_proj.weight": held(np.ones((16, 16), np.float32))}

    def split(tensors):
        fused = "blocks.0.attn.qkv.weight"
        return {n: t for n, t in {**tensors, **halves}.items() if n != fused}

    refused(meta_file(split), "its q, k and v are split; this format fuses them")


def test_a_dinov2_file_offered_as_dinov3_is_refused(meta_file):
    positions = {"pos_embed": held(np.ones((1, 17, 16), np.float32))}
    path = meta_file(lambda tensors: tensors | positions)
    refused(path, "learned positions .* DINOv2", overrides={**GIVEN, "position": "rope"})


def test_a_dinov2_folder_with_dinov3_s_config_is_refused(exported, tmp_path):
    export(random_network(PLAIN), tmp_path / "hf", format="hf", certify=False)
    shutil.copy(exported / "hf" / "config.json", tmp_path / "hf")
    refused(tmp_path / "hf", "model_type dinov3_vit, but the names of the tensors are .* dinov2")
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    refused(tmp_path / "hf", "config.json is of model_type 'clip'; read are dinov3_vit, dinov2")


def test_a_timm_folder_of_another_architecture_is_refused(tmp_path):
    for spec, message in ((RELEASED, "vit_.*_dinov3"), (SMOOTH, "learned"), (CONVNEXT, "ConvNe")):
        out = tmp_path / message[:4]
        export(random_network(spec), out, format="timm", certify=False)
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**config, "architecture": "resnet50"}))
        refused(out, f"architecture 'resnet50'.*{message}")


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_convnext_is_refused(tmp_path, format):
    out = tmp_path / "out"
    export(random_network(CONVNEXT), out, format=format, certify=False)
    (file,) = out.glob("*.safetensors") if format != "meta" else out.glob("model.*")
    tensors = dict(open_tensors(file))
    block = re.compile(r"stages\.2\.((layers|blocks)\.)?1\.")
    kept = {name: t for name, t in tensors.items() if not block.match(name)}
    assert 0 < len(tensors) - len(kept) < len(tensors)
    file.unlink()
    write_safetensors(out / "model.safetensors", kept, {})
    told = r"depths=\(1, 2, 2, 1\), but the tensors have depths \(1, 2, 1, 1\)"
    refused(out, told, overrides={"depths": CONVNEXT.depths})
    bare = tmp_path / "bare.safetensors"
    write_safetensors(bare, kept, {})
    refused(bare, "are no DINOv3 ConvNeXt: truncated?", overrides={})


def test_a_bare_file_of_dinov2_from_timm_is_told_from_the_reference_s(tmp_path):
    export(random_network(SMOOTH), tmp_path / "timm", format="timm", certify=False)
    bare = shutil.copy(tmp_path / "timm" / "model.safetensors", tmp_path / "bare.safetensors")
    found = loading.load(bare, overrides={**GIVEN, "num_heads": 2})
    assert found.report.format == "timm" and found.report.filled == ("mask_token",)


def test_a_convnext_answers_as_a_backbone(tmp_path):
    export(random_network(CONVNEXT, size=64), tmp_path / "out", format="hf", certify=False)
    backbone = dinojax.load(tmp_path / "out")
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(np.float32)
    found = backbone(images)
    assert found.cls.shape == (2, 24) and found.patches.shape == (2, 6, 24)
    assert found.registers.shape == (2, 0, 24)
    first, last = backbone.intermediate(images, [0, 3])
    assert first.patches.shape == (2, 16 * 24, 8)
    np.testing.assert_allclose(last.patches, found.patches, atol=1e-5)


@pytest.mark.parametrize("registers, offset", [(0, 0.1), (2, 0.0)])
def test_a_dinov2_file_in_chunks_loads_with_its_positions(meta_file, registers, offset):
    spec = dataclasses.replace(
        RELEASED,
        position="learned",
        position_size=16,
        position_offset=offset,
        position_antialias=offset == 0.0,
        num_registers=registers,
        ffn="swiglu_fused",
        norm="layernorm",
        mask_k_bias=False,
    )

    def chunked(tensors):
        words = {"storage_tokens": "register_tokens"}
        return {words.get(n, n.replace("blocks.", "blocks.0.")): t for n, t in tensors.items()}

    backbone = loading.load(meta_file(chunked, spec), overrides={**GIVEN, "num_heads": 2})
    told = backbone.spec
    assert (told.position, told.position_size, told.position_offset) == ("learned", 16, offset)
    assert told.norm == "layernorm" and told.ffn == "swiglu_fused"
    wanted = random_network(spec).tensors["pos_embed"].read()[0]
    np.testing.assert_array_equal(backbone.params["positions"], wanted)


class Planted:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('planted').touch()",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"cls_token": Planted()}, protocol=2))
    told = "needs PyTorch" if importlib.util.find_spec("torch") is None else "run its code.*not run"
    with pytest.raises((ValueError, ModuleNotFoundError), match=told):
        loading.load(tmp_path / "model.pth")
    assert not (tmp_path / "planted").exists()


def test_other_shapes_and_names_are_listed_at_once(meta_file):
    def change(tensors):
        wrong = {"norm.bias": held(np.ones(8, np.float32)), "blocks.1.gate": tensors["norm.bias"]}
        return {n: t for n, t in {**tensors, **wrong}.items() if n != "blocks.0.ls1.gamma"} | {}

    refused(
        meta_file(lambda t: change({**t, "blocks.0.ls2.gamma": t["norm.bias"]})),
        r"1 unexpected: blocks\.1\.gate(.|\n)*norm\.bias is \(8,\), not \(16,\)",
        overrides={**GIVEN, "layer_scale": 1.0},
    )


def test_only_a_named_pattern_lets_names_be_missing_or_unexpected(meta_file):
    def change(tensors):
        kept = {n: t for n, t in tensors.items() if n != "mask_token"}
        return kept | {"predictor.weight": tensors["norm.bias"]}

    path = meta_file(change, dataclasses.replace(RELEASED, width=32))
    refused(path, "1 missing: mask_token\n  1 unexpected: predictor.weight")
    refused(path, "1 unexpected: predictor.weight", allow=["mask_token"])
    told = loading.load(path, overrides=GIVEN, allow=["mask_*", "predictor.*"]).report
    assert told.filled == ("mask_token",) and told.ignored == ("predictor.weight",)


def test_a_permitted_gap_may_not_be_large():
    shapes = {"a": (9, 100), "b": (1, 100)}
    wanted = {n: Tensor(shape, np.dtype(np.float32), lambda: None) for n, shape in shapes.items()}
    with pytest.raises(ValueError, match="only 90.00 % of the elements"):
        report.match(wanted, {"a": wanted["a"]}, [], source="x", format="meta", allow=["b"])


def test_damaged_foreign_and_missing_files_are_refused(tmp_path, meta_file):
    path = meta_file()
    path.write_bytes(path.read_bytes()[:-8])
    refused(path, "is no safetensors file, or damaged")
    other = tmp_path / "other.safetensors"
    write_safetensors(other, {"lm_head.weight": held(np.ones((2, 2), np.float32))}, {})
    refused(other, "of no known format .*its names begin with lm_head.weight")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        loading.load(tmp_path / "none.pth")
    with pytest.raises(
        FileNotFoundError, match="must hold one file of weights; found model.*, oth"
    ):
        loading.load(tmp_path)
    with pytest.raises(ValueError, match="weights are read from .safetensors"):
        (tmp_path / "notes.txt").touch()
        loading.load(tmp_path / "notes.txt")
    refused(other, "format='gguf' is unknown; choose of hf", format="gguf")


def test_what_a_file_leaves_open_must_be_said(meta_file):
    bare = dataclasses.replace(RELEASED, num_registers=0)
    refused(meta_file(spec=bare), "does not tell the epsilon of its norms; give the override norm")
    refused(meta_file(), "'nrom' is no field of a backbone", overrides={"nrom": "layernorm"})


def test_images_of_other_channels_are_refused(exported):
    backbone = dinojax.load(exported / "dinojax")
    with pytest.raises(ValueError, match=r"takes \[B, H, W, 3\]"):
        backbone(np.zeros((1, 8, 8, 1), np.float32))


@pytest.mark.parametrize("num_images", [4, 3])
def test_a_batch_is_spread_over_devices(exported, num_images):
    backbone = dinojax.load(exported / "hf")
    images = np.random.default_rng(0).normal(size=(num_images, 32, 32, 3)).astype(np.float32)
    spread = backbone.over(jax.devices()[:2])
    want, got = backbone(images), spread(images)
    chex.assert_trees_all_close(got, want, atol=TOLERANCE)  # products of other shapes round
    (deep,) = spread.intermediate(images, [0])
    chex.assert_trees_all_close(deep, backbone.intermediate(images, [0])[0], atol=TOLERANCE)
    (whole,) = (len(x.sharding.device_set) for x in jax.tree.leaves(spread.params)[:1])
    assert whole == 2
    if num_images == 4:  # two images on each device
        assert [shard.data.shape[0] for shard in got.cls.addressable_shards] == [2, 2]


def test_intermediate_layers_come_with_and_without_the_final_norm(exported):
    backbone = dinojax.load(exported / "dinojax")
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    (last,) = backbone.intermediate(images, 1)
    np.testing.assert_allclose(last.cls, backbone(images).cls, atol=1e-5)
    plain = backbone.intermediate(images, [0, 2], norm=False)
    np.testing.assert_allclose(plain[1].prenorm[:, 0], plain[1].cls, atol=1e-6)

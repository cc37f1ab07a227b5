"""Export: what is written, what is refused, and that no wrong or half folder remains."""

import dataclasses
import json

import numpy as np
import pytest

from dinojax.weights import certificate, export, libraries, specs, stablehlo, timm
from dinojax.weights.load import load, open_source
from dinojax.weights.tensors import Tensor, held, open_tensors
from dinojax.weights.writers import snippet
from tests.support.networks_small import (
    CONVNEXT,
    DINOV2,
    DINOV2_REGISTERS,
    PLAIN,
    RELEASED,
    SMOOTH,
    TRAINED,
    random_network,
)


def write(network, out, format, **options):
    options = {"certify": False, **options}
    return export.export(network, out, format=format, **options)


FORMATS = ("meta", "hf", "timm", "dinojax")
HELD = {
    "released": (RELEASED, FORMATS),
    "trained": (TRAINED, FORMATS),
    "dinov2": (DINOV2, ("meta", "dinojax")),
    "dinov2 plain": (PLAIN, ("hf",)),
    "dinov2 smooth": (SMOOTH, ("timm",)),
    "dinov2 gated": (dataclasses.replace(PLAIN, ffn="swiglu_fused"), ("meta", "hf")),
    "dinov2 gated smooth": (dataclasses.replace(SMOOTH, ffn="swiglu_fused"), ("timm",)),
    "dinov2 registers": (DINOV2_REGISTERS, ("meta", "hf", "dinojax")),
    "convnext": (CONVNEXT, FORMATS),
}
PAIRS = [(name, format) for name, (_, formats) in HELD.items() for format in formats]


@pytest.mark.parametrize("name, format", PAIRS)
def test_every_tensor_comes_back_bit_by_bit(tmp_path, format, name):
    spec = HELD[name][0]
    network = random_network(spec)
    write(network, tmp_path / "out", format)
    source = open_source(tmp_path / "out")
    found, told, report = export.resolve(source, overrides={})
    for field in set(specs.to_json(spec)) - {"family", "layer_scale", "ffn", "ffn_ratio", "rope"}:
        assert getattr(told, field) == getattr(spec, field), field
    assert set(network.tensors) - set(found) == set(report.filled)
    assert set(report.filled) <= {"mask_token"}
    for name in found:
        np.testing.assert_array_equal(found[name].read(), network.tensors[name].read())


def test_timm_keeps_the_position_of_cls_in_cls(tmp_path):
    network = random_network(DINOV2_REGISTERS)
    write(network, tmp_path / "out", "timm")
    found, _, _ = export.resolve(open_source(tmp_path / "out"), overrides={})
    own = {name: tensor.read() for name, tensor in network.tensors.items()}
    cls = own["cls_token"] + own["pos_embed"][:, :1]
    np.testing.assert_array_equal(found["cls_token"].read(), cls)
    positions = found["pos_embed"].read()
    assert not positions[:, 0].any()
    np.testing.assert_array_equal(positions[:, 1:], own["pos_embed"][:, 1:])
    for name in set(found) - {"cls_token", "pos_embed"}:
        np.testing.assert_array_equal(found[name].read(), own[name])


@pytest.mark.parametrize(
    "format, spec, asked",
    [
        ("hf", DINOV2, "antialias false"),
        ("hf", dataclasses.replace(DINOV2_REGISTERS, position_antialias=False), "antialias true"),
        ("timm", DINOV2, "antialias true"),
        ("timm", PLAIN, "antialias true"),
    ],
)
def test_positions_that_a_library_resizes_otherwise_are_refused(tmp_path, format, spec, asked):
    with pytest.raises(ValueError, match=f"without an offset, {asked}, .*--set position_offset=0"):
        write(random_network(spec), tmp_path / "out", format)
    meant = {"position_offset": 0.0, "position_antialias": "true" in asked}
    accepted = dataclasses.replace(random_network(spec), spec=specs.replaced(spec, meant))
    write(accepted, tmp_path / "out", format)
    assert load(tmp_path / "out").spec.position_antialias == meant["position_antialias"]


def test_meta_calls_the_registers_of_dinov2_as_dinov2_does(tmp_path):
    write(random_network(DINOV2_REGISTERS), tmp_path / "out", "meta")
    names = open_source(tmp_path / "out").tensors
    assert "register_tokens" in names and "storage_tokens" not in names
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["arguments"]["interpolate_antialias"] is True


def test_a_folder_says_where_it_comes_from_and_how_it_was_proved(tmp_path):
    parity = write(random_network(RELEASED), tmp_path / "out", "hf")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["from"] == "a test" and provenance["format"] == "hf"
    assert len(provenance["digests"]) == len(open_tensors(tmp_path / "out" / "model.safetensors"))
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == parity
    assert parity == {"library": None, "reason": "left out on request"}


def test_the_model_card_states_the_licence_that_was_given_or_that_none_was(tmp_path):
    def card(name, license):
        write(random_network(RELEASED), tmp_path / name, "hf", license=license)
        return (tmp_path / name / "README.md").read_text()

    known, own, none = card("a", "CC-BY-4.0"), card("b", "Our Terms 1.0"), card("c", None)
    assert 'license: "cc-by-4.0"' in known and "license_name" not in known
    assert "`CC-BY-4.0`, as stated" in known
    assert 'license: "other"\nlicense_name: "Our Terms 1.0"' in own
    assert 'license_name: "not-stated"' in none and "Not stated" in none
    assert (
        json.loads((tmp_path / "b" / "provenance.json").read_text())["license"] == "Our Terms 1.0"
    )
    for name in ("", "a\nb: c", "`rm`", "x" * 101):
        with pytest.raises(ValueError, match="no name of a licence"):
            card("d", name)
    assert not (tmp_path / "d").exists()


def test_of_a_teacher_and_a_student_the_teacher_is_taken_and_told(tmp_path):
    """The other is one flag away."""
    torch = pytest.importorskip("torch")

    def state(seed):
        tensors = random_network(RELEASED, seed=seed).tensors
        return {f"backbone.{n}": torch.from_numpy(t.read()) for n, t in tensors.items()}

    path = tmp_path / "both.pth"
    torch.save({"student": state(1), "teacher": state(0), "step": 3}, path)
    told = "both.pth holds several backbones; teacher.backbone. was taken. For another: --prefix"
    source = open_source(path)
    assert source.chosen == f"{told} student.backbone."
    network = export.from_source(
        source, overrides={"depth": RELEASED.depth, "num_heads": RELEASED.num_heads}
    )
    assert told in network.origin["report"]
    write(network, tmp_path / "out", "hf")
    assert told in (tmp_path / "out" / "README.md").read_text()
    other = open_source(path, prefix="student.backbone.")
    want = random_network(RELEASED, seed=1).tensors["norm.bias"].read()
    np.testing.assert_array_equal(other.tensors["norm.bias"].read(), want)
    assert other.chosen == ""
    torch.save({"teacher": state(0)}, path)
    assert open_source(path).chosen == ""


def test_without_its_library_a_certificate_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(libraries.PACKAGES, "hf", ("no_such_package",))
    parity = write(random_network(RELEASED), tmp_path / "out", "hf", certify=True)
    assert parity["library"] is None
    assert "no_such_package cannot be imported" in parity["reason"]
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["features"]["cls_norm"] > 0


def test_a_network_that_differs_leaves_no_folder(tmp_path, monkeypatch):
    def other(folder, format, spec):
        def apply(images_BHWC):
            count = 1 + spec.num_registers + np.prod(spec.grid(*images_BHWC.shape[1:3]))
            tokens = np.ones((len(images_BHWC), count, spec.width), np.float32)
            return tokens, [tokens] * spec.depth

        return apply

    monkeypatch.setattr(libraries, "missing", lambda format: None)
    monkeypatch.setattr(libraries, "open_in_library", other)
    monkeypatch.setattr(libraries, "versions", lambda format: {})
    monkeypatch.setattr(certificate, "input_sizes", lambda backbone: [(16, 16)])
    with pytest.raises(ValueError, match="not the same network: .* differs by .* Nothing was writ"):
        write(random_network(RELEASED), tmp_path / "out", "hf", certify=True)
    assert list(tmp_path.iterdir()) == []


def test_heads_are_written_beside_on_request(tmp_path):
    heads = {"dino_head.last_layer.weight": held(np.ones((4, 2), np.float32))}
    network = dataclasses.replace(random_network(RELEASED), heads=heads)
    write(network, tmp_path / "with", "timm", with_heads=True)
    assert list(open_tensors(tmp_path / "with" / "heads.safetensors")) == list(heads)
    write(network, tmp_path / "without", "timm")
    assert not (tmp_path / "without" / "heads.safetensors").exists()
    with pytest.raises(ValueError, match="comes without heads"):
        write(random_network(RELEASED), tmp_path / "none", "timm", with_heads=True)


def test_bfloat16_halves_the_file_and_reads_back_as_float32(tmp_path):
    network = random_network(RELEASED)
    write(network, tmp_path / "half", "hf", dtype="bfloat16")
    write(network, tmp_path / "whole", "hf")
    tensors = open_tensors(tmp_path / "half" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    assert load(tmp_path / "half").report.cast == len(network.tensors)


def test_tensors_are_read_one_by_one_in_the_order_of_their_leaves(tmp_path):
    network, reads = random_network(RELEASED), []

    def watched(name, tensor):
        return Tensor(tensor.shape, tensor.dtype, lambda: reads.append(name) or tensor.read())

    tensors = {name: watched(name, tensor) for name, tensor in network.tensors.items()}
    write(dataclasses.replace(network, tensors=tensors), tmp_path / "out", "meta")
    assert reads == list(network.tensors)


REFUSED = [
    ("hf", {"norm": "rmsnorm"}, "transformers has LayerNorm only, this backbone rmsnorm"),
    ("timm", {"norm": "rmsnorm"}, "timm has LayerNorm only, this backbone rmsnorm"),
    ("hf", {"layer_scale": None}, "always has LayerScale"),
    ("hf", {"untie_cls_norm": True}, "one final norm"),
    ("timm", {"ffn_bias": False}, "always has biases in the MLP"),
    ("timm", {"proj_bias": False}, "always has a bias in the projection"),
]
REFUSED_OTHERS = [
    ("hf", PLAIN, {"layer_scale": None}, "always has LayerScale"),
    ("hf", PLAIN, {"ffn": "swiglu"}, "no feed-forward network like swiglu with ratio 4"),
    ("hf", PLAIN, {"mask_k_bias": True}, "no mask on the bias of k"),
    ("timm", SMOOTH, {"norm": "layernorm_1e5"}, "LayerNorm of 1e-6, this backbone layernorm_1e5"),
    ("timm", SMOOTH, {"ffn": "swiglu"}, "has no swiglu"),
    ("hf", CONVNEXT, {"layer_scale": None}, "ConvNeXt always has LayerScale"),
]
ROPES = [
    ({"periods_dtype": "bfloat16"}, "rounded to bfloat16.*--set rope.periods_dtype=float32"),
    ({"dtype": "bfloat16"}, "rounded to bfloat16"),
    ({"coords": "max"}, "coords=max; use --format meta"),
    ({"base": None, "min_period": 1.0, "max_period": 9.0}, "base=None"),
]


@pytest.mark.parametrize("format, change, reason", REFUSED)
def test_what_a_format_cannot_hold_is_refused_with_the_reason(tmp_path, format, change, reason):
    network = random_network(dataclasses.replace(RELEASED, **change))
    with pytest.raises(ValueError, match=f"--format {format} cannot hold this network: .*{reason}"):
        write(network, tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format, spec, change, reason", REFUSED_OTHERS)
def test_what_a_library_cannot_hold_of_other_families_is_refused(
    tmp_path, format, spec, change, reason
):
    network = random_network(dataclasses.replace(spec, **change))
    with pytest.raises(ValueError, match=f"--format {format} cannot hold this network: .*{reason}"):
        write(network, tmp_path / "out", format)


@pytest.mark.parametrize("format", ["hf", "timm"])
@pytest.mark.parametrize("change, reason", ROPES)
def test_rope_that_a_library_computes_otherwise_is_refused(tmp_path, format, change, reason):
    rope = dataclasses.replace(RELEASED.rope, **change)
    network = random_network(dataclasses.replace(RELEASED, rope=rope))
    with pytest.raises(ValueError, match=reason):
        write(network, tmp_path / "out", format)


def test_timm_gets_the_variant_that_can_hold_the_biases():
    own = random_network(RELEASED).preprocessing
    masked, live = (timm.config(spec, own) for spec in (RELEASED, TRAINED))
    assert masked["architecture"].endswith("_qkvb") and masked["model_args"]["attn_type"] == "eva"
    assert live["model_args"]["attn_type"] == "rope" and live["model_args"]["qkv_bias"]
    small = dataclasses.replace(RELEASED, width=384, depth=12, num_heads=6, qkv_bias=False)
    assert timm.config(small, own)["architecture"] == "vit_small_patch16_dinov3"


def test_wrong_options_and_taken_folders_are_refused(tmp_path):
    network = random_network(RELEASED)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="taken exists and is not an empty folder"):
        write(network, tmp_path / "taken", "hf")
    with pytest.raises(ValueError, match="--format onnx is unknown; choose of meta"):
        write(network, tmp_path / "out", "onnx")
    with pytest.raises(ValueError, match="--dtype int8 is unknown; choose of float32"):
        write(network, tmp_path / "out", "hf", dtype="int8")


def test_inputs_are_training_size_larger_and_a_rectangle(tmp_path):
    write(random_network(RELEASED, size=16), tmp_path / "out", "dinojax")
    sizes = certificate.input_sizes(load(tmp_path / "out"))
    assert sizes == [(16, 16), (24, 24), (16, 24)]


CALLS = [("hf", "AutoModel"), ("timm", "create_model"), ("meta", "load_state_dict")]


@pytest.mark.parametrize("spec", [RELEASED, DINOV2, CONVNEXT], ids=["dinov3", "dinov2", "convnext"])
@pytest.mark.parametrize("format, call", CALLS)
def test_the_snippet_names_the_folder_and_both_libraries(format, call, spec):
    lines = snippet("some/folder", format, spec)
    assert call in lines and 'dinojax.load("some/folder")' in lines
    compile(lines, "snippet", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("spec", [RELEASED, DINOV2, CONVNEXT], ids=["dinov3", "dinov2", "convnext"])
def test_a_stablehlo_program_makes_the_same_features_of_any_number_of_images(tmp_path, spec):
    size = 64 if spec is CONVNEXT else 16
    parity = write(random_network(spec, size=size), tmp_path / "out", "stablehlo", certify=True)
    assert parity["passed"] and {row["input"][0] for row in parity["rows"]} == {size}
    assert "flatbuffers" in parity["library"]
    backbone = load(tmp_path / "out")
    images = np.random.default_rng(0).normal(size=(3, size, size, 3)).astype(np.float32)
    program = stablehlo.open_program(tmp_path / "out")
    found = backbone(images)
    tokens = np.concatenate([found.cls[:, None], found.registers, found.patches], axis=1)
    np.testing.assert_allclose(program(images), tokens, atol=2e-5)
    names: dict = {}
    exec(snippet(tmp_path / "out", "stablehlo", spec), names)
    np.testing.assert_allclose(names["patches"], names["features"].patches, atol=2e-5)


def test_stablehlo_asks_for_its_package_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "missing", lambda: "no flatbuffers: pip install it")
    with pytest.raises(ModuleNotFoundError, match="--format stablehlo: no flatbuffers"):
        write(random_network(RELEASED), tmp_path / "out", "stablehlo")
    assert list(tmp_path.iterdir()) == []

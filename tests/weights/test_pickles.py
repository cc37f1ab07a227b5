"""Files of PyTorch: every kind that people have is read or refused by a true sentence, never run.

Skipped, with the reason, where PyTorch is not installed.
"""

import argparse
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from dinojax.weights import load as loading
from dinojax.weights import pickles
from dinojax.weights.export import export
from tests.support.library_models import needs
from tests.support.networks_small import PLAIN, RELEASED, random_network

GIVEN = {"depth": RELEASED.depth}


@pytest.fixture(autouse=True)
def torch():
    needs("meta")
    import torch

    return torch


@pytest.fixture
def state(torch):
    """The state of a small network, as PyTorch's tensors."""
    return {
        name: torch.from_numpy(tensor.read().copy())
        for name, tensor in random_network(RELEASED).tensors.items()
    } | {"rope_embed.periods": torch.tensor([1.0, 100.0**0.5])}


@pytest.fixture
def saved(torch, tmp_path):
    def save(content, **options):
        torch.save(content, tmp_path / "model.pth", **options)
        return tmp_path / "model.pth"

    return save


def good(path, **options):
    found = loading.load(path, overrides=GIVEN, **options)
    want = random_network(RELEASED).tensors["blocks.1.mlp.fc1.bias"].read()
    np.testing.assert_array_equal(found.params["blocks"]["mlp"]["fc1"]["bias"][1], want)
    assert found.report.share == 1.0


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        loading.load(path, **{"overrides": GIVEN, **options})
    told = str(caught.value)
    assert told.startswith(str(path))
    return told


CONTAINERS = {
    "bare": lambda state: state,
    "parameters": lambda state: {n: _parameter(t) for n, t in state.items()},
    "of training": lambda state: {"model": state, "optimizer": {"state": {0: {}}}, "epoch": 3},
    "with arguments": lambda state: {"teacher": state, "args": argparse.Namespace(lr=1e-3)},
    "with numpy's numbers": lambda state: {
        "model": state,
        "epoch": np.int64(7),
        "x": np.float32(1),
    },
    "of arrays": lambda state: {name: tensor.numpy() for name, tensor in state.items()},
    "with words": lambda state: {**state, "epoch": 3, "_extra_state": None, "name": "x"},
    "compiled": lambda state: {"module._orig_mod." + n: t for n, t in state.items()},
    "in backbone": lambda state: {"backbone": state},
}


def _parameter(tensor):
    import torch

    return torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


@pytest.mark.parametrize("old", [False, True], ids=["archive", "old version"])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_people_save_is_read(saved, state, kind, old):
    good(saved(CONTAINERS[kind](state), _use_new_zipfile_serialization=not old))


def test_half_precision_is_read(saved, state, torch):
    path = saved({name: tensor.to(torch.bfloat16) for name, tensor in state.items()})
    report = loading.load(path, overrides={**GIVEN, "rope.periods_dtype": "float32"}).report
    assert report.cast == report.matched


def test_a_network_in_a_dictionary_of_another_name_is_proposed(saved, state):
    path = saved({"ema": {f"module.net.{n}": t for n, t in state.items()}, "step": 1})
    refused(path, r"under the prefix 'ema\.net\.'")
    good(path, prefix="ema.net.")
    good(path, prefix="ema.module.net")


def test_student_and_teacher_are_both_to_be_had(saved, state):
    other = {**state, "norm.bias": state["norm.bias"] + 1}
    nested = {f"backbone.{name}": tensor for name, tensor in state.items()}
    path = saved({"student": nested, "teacher": {f"backbone.{n}": t for n, t in other.items()}})
    good(path, prefix="student.")
    for options in ({}, {"prefix": "teacher."}, {"prefix": "teacher.backbone."}):
        found = loading.load(path, overrides=GIVEN, **options).params["norm"]["bias"]
        np.testing.assert_array_equal(found, other["norm.bias"].numpy())
    shared = saved({"student": nested, "teacher": nested})  # one dictionary under two names
    good(shared, prefix="student.backbone.")


def test_containers_that_hold_themselves_end(saved, state, tmp_path):
    loop: dict = {"epoch": 1}
    loop["model"] = loop
    refused(saved(loop), "holds no tensors by name; its entries: epoch")
    good(saved({"model": {**state, "self": loop}}))
    many: dict = {"x": 1}
    for _ in range(30):  # 2**30 paths through 30 dictionaries
        many = {"a": many, "b": many}
    refused(saved(many), "dictionaries more than 32 deep, or more than 10,000")


def test_shards_of_pickles_are_read_by_their_index(state, torch, tmp_path):
    halves = {"a.bin": dict(list(state.items())[::2]), "b.bin": dict(list(state.items())[1::2])}
    for name, half in halves.items():
        torch.save(half, tmp_path / name)
    table = {key: name for name, half in halves.items() for key in half}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    good(tmp_path)
    index.write_text(json.dumps({"weight_map": {**table, "norm.bias": "c.bin"}}))
    with pytest.raises(FileNotFoundError, match="c.bin does not exist"):
        loading.load(tmp_path)


# -- what is refused -------------------------------------------------------------------------------


class Planted:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('planted').touch()",))


@pytest.mark.parametrize("old", [False, True], ids=["archive", "old version"])
def test_code_is_named_and_not_run(saved, state, tmp_path, monkeypatch, old):
    monkeypatch.chdir(tmp_path)
    path = saved({"model": state, "x": Planted()}, _use_new_zipfile_serialization=not old)
    refused(path, r"more than tensors \(.*exec\).*would run its code.*not run")
    assert not (tmp_path / "planted").exists()


def test_float8_complex_sparse_and_empty_tensors_are_named(saved, state, torch):
    for tensor, told in (
        (torch.ones(16).to(torch.float8_e4m3fn), "norm.bias has dtype float8_e4m3fn.*save it as"),
        (torch.ones(16, dtype=torch.complex64), "norm.bias has dtype complex64"),
        (torch.ones(16).to_sparse(), "norm.bias is a tensor torch.sparse_coo"),
        (torch.empty(16, device="meta"), r"norm.bias is a tensor without values \(device meta\)"),
    ):
        refused(saved({**state, "norm.bias": tensor}), told)


def test_a_tensor_much_larger_than_its_file_is_refused(saved, state, torch):
    large = {"norm.bias": torch.ones(1).expand(10**6, 10**6)}
    refused(saved({**state, **large}), "tells 4,000,000,[0-9,]+ bytes of tensors in a file of")


def test_what_is_spread_over_processes_has_its_own_sentence():
    """As PyTorch reports a DTensor; making one takes a group of processes."""
    for message in (
        "Weights only load failed. ``torch.distributed.tensor`` must be imported to load DTensors",
        "Unsupported global: GLOBAL torch.distributed._shard.sharded_tensor.api.ShardedTensor",
    ):
        assert "spread over processes" in pickles._unpicklable(message)
        assert "run its code" not in pickles._unpicklable(message)


def test_other_contents_are_told(saved, state, torch, tmp_path):
    refused(saved([state]), "holds a list, no tensors by name")
    refused(saved({}), "holds no tensors by name; its entries: none")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            archive.writestr(f"program/{name}", b"x")
    refused(tmp_path / "program.pt", "is a TorchScript program; save its state_dict")
    np.savez(tmp_path / "x.npz", x=np.ones(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "is an archive, but none that PyTorch wrote")
    export(random_network(RELEASED), tmp_path / "out", format="dinojax", certify=False)
    (tmp_path / "out" / "backbone.safetensors").rename(tmp_path / "y.pth")
    refused(tmp_path / "y.pth", "is a safetensors file; rename it to .safetensors")


@pytest.mark.parametrize("old", [False, True], ids=["archive", "old version"])
def test_a_file_that_is_cut_off_is_never_said_to_hold_code(saved, state, old):
    path = saved(state, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    for size in [1, 10, 16, 60, 200, *np.linspace(300, len(whole) - 1, 25).astype(int)]:
        path.write_bytes(whole[:size])
        told = refused(path, "cut off|damaged|holds text")
        assert "run its code" not in told and "\n" not in told


def test_flipped_bits_of_tensors_are_seen_by_the_checksums_of_the_archive(saved, state, torch):
    path = saved(state)
    whole = bytearray(path.read_bytes())
    at = whole.index(state["norm.bias"].numpy().tobytes())
    whole[at] ^= 16
    path.write_bytes(whole)
    assert torch.load(path, weights_only=True)["norm.bias"][0] != state["norm.bias"][0]
    refused(path, "is damaged: Bad CRC-32")
    torch.serialization.set_crc32_options(False)
    try:
        good(saved(state))  # written without checksums
    finally:
        torch.serialization.set_crc32_options(True)


def test_an_archive_that_was_packed_again_gives_the_same_tensors(saved, state, torch):
    """Compressed entries cannot be mapped: torch.load(mmap=True) takes them for values."""
    path = saved(state)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
    path.write_bytes(packed.getvalue())
    good(path)


# -- what transformers writes ----------------------------------------------------------------------


def test_the_state_of_dinov2_in_transformers_is_read_as_its_folder_is(saved, torch, tmp_path):
    """Names in memory (q_proj, o_proj) differ from those on disk since transformers 5."""
    out = tmp_path / "hf"
    export(random_network(PLAIN), out, format="hf", certify=False)
    found = loading.open_source(out).tensors
    words = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output.dense": "o_proj"}
    state = {}
    for name, tensor in found.items():
        name = name.replace("attention.attention.", "attention.")
        for theirs, memory in words.items():
            name = name.replace(f"attention.{theirs}.", f"attention.{memory}.")
        state[name] = torch.from_numpy(tensor.read().copy())
    assert "encoder.layer.0.attention.o_proj.bias" in state
    got = loading.load(saved(state), overrides={**GIVEN, "num_heads": 2, "position_offset": 0.0})
    want = loading.load(out)
    qkv = lambda backbone: backbone.params["blocks"]["attn"]["qkv"]["kernel"]  # noqa: E731
    np.testing.assert_array_equal(qkv(got), qkv(want))
    assert got.report.share == 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other people's libraries
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("mask", [True, False])
def test_a_classifier_of_transformers_gives_the_backbone_in_it(tmp_path, registers, mask):
    needs("hf")
    import torch
    import transformers

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=56)
    config = getattr(transformers, f"{kind}Config")(**sizes, patch_size=14, use_mask_token=mask)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    model.save_pretrained(tmp_path)
    backbone = loading.load(tmp_path)
    assert "left aside, after the backbone: classifier." in str(backbone.report)
    assert backbone.report.filled == (() if mask or registers else ("mask_token",))
    images = np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32)
    with torch.inference_mode():
        (inner,) = (part for name, part in model.named_children() if name.startswith("dinov2"))
        want = inner(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state
    np.testing.assert_allclose(backbone(images).cls, want[:, 0], atol=1e-5)


def test_pickles_of_no_tensors_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4):
        (tmp_path / "model.bin").write_bytes(pickle.dumps({"x": Planted()}, protocol=protocol))
        refused(tmp_path / "model.bin", "run its code|damaged|holds text")
    assert not (tmp_path / "planted").exists()

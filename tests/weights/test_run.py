"""Runs and files as networks: export and import commands, other numbers of channels."""

import json
import shutil

import numpy as np
import pytest

import dinojax
from dinojax import config as configs
from dinojax.checkpoint.manager import Checkpoints
from dinojax.cli import main
from dinojax.config import ConfigError
from dinojax.models.vit import Vit
from dinojax.train import program
from dinojax.weights import run as convert
from dinojax.weights.export import export
from dinojax.weights.inflate import inflate
from dinojax.weights.load import load
from dinojax.weights.tensors import held, open_tensors
from tests.support import small
from tests.support.networks_small import CONVNEXT, RELEASED, random_network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with one checkpoint, whose ema and student differ."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    config = small.config("mesh.devices=1")
    configs.save(config, directory / "config.json") if directory.mkdir() is None else None
    rng = np.random.default_rng(0)
    state = convert_state(config, rng)
    checkpoints = Checkpoints(
        directory / "checkpoints" / config.stage, keep_last=1, keep_every=None
    )
    checkpoints.save(state, step=7, meta={})
    checkpoints.wait()
    checkpoints.close()
    return directory, config, state


def convert_state(config, rng):
    """A state of random numbers in the shapes of the config."""
    import jax

    from dinojax.sharding import mesh
    from dinojax.train.state import abstract

    layout = mesh.make("dp", 1)
    objective = program.build_objective(config, images_per_step=config.batch_size)
    optimizer = program.build_optimizer(config, objective)

    def fill(leaf):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), leaf.sharding)
        values = rng.normal(size=leaf.shape) * 0.1 + 0.5
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, abstract(objective, optimizer, layout))


def test_a_run_loads_as_its_ema(run):
    directory, config, state = run
    backbone = dinojax.load(directory)
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype(np.float32)
    expected = Vit(backbone.spec).apply({"params": state.ema["backbone"]}, [images])[0]
    np.testing.assert_allclose(backbone(images).cls, expected.cls, atol=1e-5)
    assert backbone.preprocessing.normalize == config.image.normalize == "per_crop"
    assert backbone.preprocessing.crop_size == config.knn.crop_size


def test_an_evaluation_refuses_a_key_that_it_does_not_read(run):
    """Before anything is restored or computed."""
    with pytest.raises(ConfigError, match="--set optim.clip: nothing here reads it; leave it out"):
        dinojax.evaluate(run[0], overrides={"optim.clip": 1.0, "knn.neighbors": 5})


@pytest.mark.parametrize("network", ["ema", "student"])
def test_a_run_exports_the_network_that_was_asked_for_with_heads(run, tmp_path, capsys, network):
    directory, _, state = run
    options = dict(dtype=None, with_heads=True, step=None, overrides=[], tolerance=2e-5, stage=None)
    convert.export_command(
        run=str(directory), weights=None, out=str(tmp_path / "out"), format="hf",
        network=network, certify=False, **options,
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "normalised by its own mean" in told and "AutoModel.from_pretrained" in told
    tensors = open_tensors(tmp_path / "out" / "model.safetensors")
    expected = getattr(state, network)["backbone"]["cls_token"]
    np.testing.assert_array_equal(tensors["embeddings.cls_token"].read()[0, 0], expected)
    heads = open_tensors(tmp_path / "out" / "heads.safetensors")
    kernel = getattr(state, network)["ibot_head"]["prototypes"]["kernel"]
    np.testing.assert_array_equal(heads["ibot_head.last_layer.weight"].read(), kernel.T)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["step"] == 7 and provenance["network"] == network


def test_an_earlier_stage_of_a_run_is_exported(run, tmp_path, capsys):
    """The run is at a second stage, of which nothing is trained yet."""
    directory, config, state = run
    shutil.copytree(directory, tmp_path / "run")
    names = [config.stage, "later"]
    (tmp_path / "run/stages").mkdir()
    configs.save(config, tmp_path / "run/stages" / f"{config.stage}.json", stages=names)
    later = config.replaced({"stage": "later"})
    configs.save(later, tmp_path / "run/config.json", stages=names)
    words = ["export", "--run", str(tmp_path / "run"), "--format", "hf", "--no-certificate"]
    assert main.main([*words, "--out", str(tmp_path / "none")]) == main.REFUSED
    assert "has no checkpoint" in capsys.readouterr().err
    out = tmp_path / "out"
    assert main.main([*words, "--stage", config.stage, "--out", str(out)]) == main.FINISHED
    found = open_tensors(out / "model.safetensors")["embeddings.cls_token"].read()[0, 0]
    np.testing.assert_array_equal(found, state.ema["backbone"]["cls_token"])
    assert json.loads((out / "provenance.json").read_text())["stage"] == config.stage
    capsys.readouterr()
    assert main.main([*words, "--stage", "x", "--out", str(tmp_path / "x")]) == main.REFUSED
    assert f"has no stage x; it has {config.stage}, later" in capsys.readouterr().err
    file = ["export", "--weights", str(out), "--format", "meta", "--stage", "x", "--out", "y"]
    assert main.main(file) == main.REFUSED
    assert "choose a checkpoint of a --run" in capsys.readouterr().err


def test_an_import_is_a_folder_of_per_layer_tensors_that_loads(tmp_path, capsys):
    export(random_network(RELEASED), tmp_path / "hf", format="hf", certify=False)
    convert.import_command(str(tmp_path / "hf"), str(tmp_path / "own"))
    assert "format hf: 49 tensors" in capsys.readouterr().out
    names = list(open_tensors(tmp_path / "own" / "backbone.safetensors"))
    assert "blocks.2.attn.qkv.weight" in names
    assert load(tmp_path / "own").spec == load(tmp_path / "hf").spec


def test_a_file_for_more_channels_comes_without_their_statistics(tmp_path, capsys):
    export(random_network(RELEASED), tmp_path / "a", format="dinojax", certify=False)
    arguments = (str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(ValueError, match="say how with --inflate repeat | mean"):
        convert.import_command(*arguments, channels=5)
    convert.import_command(*arguments, channels=5, inflate="0,1,2,-1,1")
    assert "mean and std of 5 channels are not known" in capsys.readouterr().out
    backbone = load(tmp_path / "b")
    assert backbone.spec.channels == 5 and backbone.preprocessing.mean is None
    statistics = dict(mean=[0.1] * 5, std=[0.2] * 5)
    with pytest.raises(ValueError, match="--std needs 5 values"):
        convert.import_command(str(tmp_path / "b"), str(tmp_path / "c"), mean=[0.1] * 5)
    convert.import_command(str(tmp_path / "b"), str(tmp_path / "c"), **statistics)
    assert load(tmp_path / "c").preprocessing.std == (0.2,) * 5


def test_a_convnext_can_be_imported_for_other_channels_too(tmp_path, capsys):
    export(random_network(CONVNEXT), tmp_path / "a", format="hf", certify=False)
    convert.import_command(str(tmp_path / "a"), str(tmp_path / "b"), channels=1, inflate="mean")
    wide, grey = (load(tmp_path / name).params["downsamples_0"] for name in "ab")
    assert grey["conv"]["kernel"].shape == (4, 4, 1, 8)
    total = wide["conv"]["kernel"].sum(axis=2)
    np.testing.assert_allclose(grey["conv"]["kernel"][:, :, 0], total, rtol=1e-5, atol=1e-6)


KERNEL = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)


def test_repeated_and_mean_channels_answer_equal_channels_as_before():
    for how in ("repeat", "mean"):
        wide = inflate(held(KERNEL), 6, how).read()
        assert wide.shape == (2, 6, 4, 4)
        np.testing.assert_allclose(wide.sum(axis=1), KERNEL.sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inflate(held(KERNEL), 6, "repeat").read()[:, 4], KERNEL[:, 1] / 2)
    grey = inflate(held(KERNEL), 1, "mean").read()
    np.testing.assert_allclose(grey[:, 0], KERNEL.sum(axis=1), rtol=1e-5, atol=1e-6)


def test_new_channels_may_be_zero_or_copies():
    zero = inflate(held(KERNEL), 5, "zero").read()
    np.testing.assert_array_equal(zero[:, :3], KERNEL)
    assert not zero[:, 3:].any()
    picked = inflate(held(KERNEL), 3, [2, -1, 0]).read()
    np.testing.assert_array_equal(picked[:, [0, 2]], KERNEL[:, [2, 0]])
    assert not picked[:, 1].any()


@pytest.mark.parametrize(
    "channels, how, message",
    [
        (5, "double", "--inflate double is unknown"),
        (2, "zero", "cannot drop channels"),
        (2, [0, 3], "for each of 2 channels, one of 0 to 2, or -1"),
        (2, [0], "for each of 2 channels"),
    ],
)
def test_impossible_inflations_are_refused(channels, how, message):
    with pytest.raises(ValueError, match=message):
        inflate(held(KERNEL), channels, how)


def test_overrides_are_numbers_words_and_nothing():
    settings = ["depth=2", "rope.base=50.5", "norm=rmsnorm", "qkv_bias=false", "layer_scale=none"]
    assert convert.parse_overrides(["depths=3,3,9,3"]) == {"depths": (3, 3, 9, 3)}
    expected = dict(depth=2, norm="rmsnorm", qkv_bias=False, layer_scale=None)
    assert convert.parse_overrides(settings) == {**expected, "rope.base": 50.5}
    with pytest.raises(ValueError, match="give NAME=VALUE"):
        convert.parse_overrides(["depth"])


def test_a_path_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run directory; for files give --weights"):
        convert.export_command(
            run=str(tmp_path), weights=None, out="x", format="hf", dtype=None, with_heads=False,
            network="ema", stage=None, step=None, overrides=[], certify=True, tolerance=1e-5,
        )  # fmt: skip

"""Looking at checkpoints: sizes, shardings, configs, torn ones; from fewer devices than saved."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dinojax import config
from dinojax.checkpoint.inspect import Checkpoint, Torn, inspect
from dinojax.checkpoint.manager import FORMAT_VERSION, Checkpoints
from dinojax.cli import main
from dinojax.train.state import State

VERSIONS = {"jax": "0.10.2", "numpy": "2.4.6"}


def state(step):
    """Few arrays on eight devices, of sizes that cannot be mistaken for each other."""
    mesh = Mesh(np.array(jax.devices()).reshape(1, 8, 1), ("replica", "fsdp", "tensor"))

    def place(shape, *axes, dtype=jnp.float32):
        return jax.device_put(jnp.zeros(shape, dtype), NamedSharding(mesh, PartitionSpec(*axes)))

    return State(
        step=place((), dtype=jnp.int32) + step,
        key=jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec())),
        student={"backbone": {"kernel": place((4, 16), None, "fsdp"), "bias": place((16,))}},
        ema={"backbone": {"kernel": place((24, 3), ("replica", "fsdp"))}},
        gram={"cls_token": place((5,), dtype=jnp.bfloat16)},
        opt_state=({"count": place((), dtype=jnp.int32)}, {"mu": place((8, 8), "fsdp")}),
        centers={},
        bad_steps=place((), dtype=jnp.int32),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with steps 2 and 10, saved on eight devices."""
    run = tmp_path_factory.mktemp("run")
    recipe = config.load("tiny", ["batch_size=32"]).to_dict()
    checkpoints = Checkpoints(run / "checkpoints" / "pretrain", keep_last=3, keep_every=None)
    for step in (2, 10):
        meta = {"position": 32 * step, "fingerprint": "f00d", "config": recipe}
        checkpoints.save(state(step), step=step, meta={**meta, "versions": VERSIONS})
        recipe = recipe | {"undeclared": {"key": 1}}
    checkpoints.wait()
    checkpoints.close()
    return run


@pytest.fixture
def run(saved, tmp_path):
    """A copy to break."""
    return shutil.copytree(saved, tmp_path / "run")


def stage_of(run):
    return run / "checkpoints" / "pretrain"


def test_a_run_its_checkpoints_and_a_stage_list_the_same_steps_in_order(saved):
    for path in (saved, saved / "checkpoints", stage_of(saved)):
        found, is_step = inspect(path)
        assert [(one.step, one.stage, one.meta["position"]) for one in found] == [
            (2, "pretrain", 64),
            (10, "pretrain", 320),
        ]
        assert not is_step


def test_a_step_tells_shapes_dtypes_bytes_and_shardings(saved):
    (found,), is_step = inspect(stage_of(saved) / "10")
    arrays = {array.path: array for array in found.arrays}
    assert is_step and found.step == 10 and found.versions == VERSIONS
    assert found.mesh == {"replica": 1, "fsdp": 8, "tensor": 1}
    kernel = arrays["student.backbone.kernel"]
    assert (kernel.shape, kernel.dtype, kernel.bytes) == ((4, 16), "float32", 256)
    assert kernel.sharding == [None, "fsdp"] and kernel.mesh == found.mesh
    assert arrays["ema.backbone.kernel"].sharding[0] == ["replica", "fsdp"]
    assert arrays["gram.cls_token"].dtype == "bfloat16" and arrays["gram.cls_token"].bytes == 10
    assert arrays["opt_state.1.mu"].shape == (8, 8)
    assert found.parts == {
        **{"step": 4, "key": 8, "student": 256 + 64, "ema": 288},
        **{"gram": 10, "opt_state": 4 + 256, "bad_steps": 4},
    }
    files = [file for file in (stage_of(saved) / "10").rglob("*") if file.is_file()]
    assert found.disk_bytes == sum(file.stat().st_size for file in files)


def test_config_keys_that_differ_from_base_are_named_with_both_values(saved):
    (first, second), _ = inspect(saved)
    assert first.config["batch_size"] == {"saved": 32, "base": 2048}
    assert first.config["model.patch_size"] == {"saved": 8, "base": 16}
    assert "crops.aspect" not in first.config  # a tuple in base.py, a list in JSON, and equal
    assert second.config["undeclared.key"] == {"saved": 1}


def test_saved_on_eight_devices_it_is_told_on_one_without_an_accelerator(saved):
    """In a process that sees one device and was told to use an accelerator that is not there."""
    script = (
        "import sys; from dinojax.cli.main import main; code = main(sys.argv[1:]); "
        "import jax; assert jax.default_backend() == 'cpu' and jax.device_count() == 1; "
        "sys.exit(code)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", script, "ckpt", "inspect", str(stage_of(saved) / "2")],
        env={**environment, "JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "saved on 8 devices (replica=1, fsdp=8, tensor=1)" in done.stdout
    (kernel,) = [line for line in done.stdout.splitlines() if "student.backbone.kernel" in line]
    assert kernel.split() == "student.backbone.kernel float32 4x16 256 (-, fsdp)".split()


def test_the_listing_for_people(saved, capsys):
    assert main.main(["ckpt", "inspect", str(saved)]) == main.FINISHED
    told = capsys.readouterr().out
    assert f"{stage_of(saved) / '10'}: complete" in told
    assert "step 10, position 320, fingerprint f00d" in told
    assert told.count("jax 0.10.2, numpy 2.4.6") == 1  # versions only where they change
    assert "batch_size = 32  (base: 2048)" in told
    assert "undeclared.key = 1  (no key of this version)" in told
    assert "in memory 894 B: bad_steps 4 B, ema 288 B, gram 10 B, key 8 B, opt_state 260 B" in told
    assert "student.backbone" not in told  # arrays only for one step


def test_json_has_arrays_for_one_step_only(saved, capsys):
    assert main.main(["ckpt", "inspect", str(saved), "--json"]) == main.FINISHED
    listed = json.loads(capsys.readouterr().out)
    assert main.main(["ckpt", "inspect", str(stage_of(saved) / "2"), "--json"]) == main.FINISHED
    (one,) = json.loads(capsys.readouterr().out)
    assert [record["complete"] for record in listed] == [True, True]
    assert all("arrays" not in record for record in listed)
    assert {"path", "shape", "dtype", "bytes", "sharding", "mesh"} == set(one["arrays"][0])


def test_torn_checkpoints_are_told_beside_the_complete_one(run, capsys):
    (stage_of(run) / "11.orbax-checkpoint-tmp").mkdir()
    (stage_of(run) / "12.torn").mkdir()
    (stage_of(run) / "10" / "commit_success.txt").unlink()
    found, _ = inspect(run)
    assert [type(one) for one in found] == [Checkpoint, Torn, Torn, Torn]
    assert "lacks commit_success.txt" in found[1].torn
    assert main.main(["ckpt", "inspect", str(run)]) == main.FINISHED
    assert "11.orbax-checkpoint-tmp: TORN, being written, or its run" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["meta", "state", "state/_METADATA", "state/manifest.ocdbt"])
def test_a_partial_copy_is_torn(run, lost):
    path = stage_of(run) / "10" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=f"lacks .*{lost}.*: never completed, or copied in part"):
        inspect(stage_of(run) / "10")


def test_unreadable_and_foreign_metadata_are_torn(run):
    (stage_of(run) / "2" / "state" / "_METADATA").write_text("{")
    (stage_of(run) / "10" / "meta" / "metadata").write_text('{"format_version": 1, "step": 10}')
    with pytest.raises(ValueError) as caught:
        inspect(run)
    assert "2: unreadable: JSONDecodeError" in str(caught.value)
    assert "10: not of `dinojax train`: no config, versions saved" in str(caught.value)


def test_another_format_is_refused(run):
    path = stage_of(run) / "10" / "meta" / "metadata"
    own = f'"format_version": {FORMAT_VERSION}'
    path.write_text(path.read_text().replace(own, '"format_version": 99'))
    with pytest.raises(ValueError, match="10 has format 99, this version of dinojax reads format"):
        inspect(run)


def test_only_torn_ones_are_an_error_that_names_each(run, capsys):
    stage = stage_of(run)
    shutil.rmtree(stage / "2")
    (stage / "10").rename(stage / "10.orbax-checkpoint-tmp")
    for path in (run, stage / "10.orbax-checkpoint-tmp"):
        assert main.main(["ckpt", "inspect", str(path)]) == main.REFUSED
        told = capsys.readouterr().err
        assert "no complete checkpoint, only torn:" in told and "10.orbax-checkpoint-tmp: " in told


def test_no_path_and_no_checkpoints_are_refused_with_the_way_on(tmp_path, capsys):
    assert main.main(["ckpt", "inspect", str(tmp_path / "absent")]) == main.REFUSED
    assert "no directory" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "pretrain").mkdir(parents=True)
    assert main.main(["ckpt", "inspect", str(tmp_path)]) == main.REFUSED
    assert "holds no checkpoints. Give a run directory" in capsys.readouterr().err


def test_a_step_copied_elsewhere_is_still_a_step(run, tmp_path):
    copy = shutil.copytree(stage_of(run) / "10", tmp_path / "teacher")
    (found,), is_step = inspect(copy)
    assert is_step and found.step == 10

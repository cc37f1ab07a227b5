"""Checkpoints: exact, on any mesh, whole or not at all, and never silent."""

import gc
import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.checkpoint import checksum
from dinojax.checkpoint.manager import FORMAT_VERSION, Checkpoints, Damaged
from dinojax.distributed.interrupt import LOST, Lost, StorageError
from dinojax.sharding import mesh
from dinojax.train.state import State
from tests.support import small


def state(layout, seed: int = 0) -> State:
    """Numbers in the shapes of a state, student and moments sharded where the layout says."""
    rng = np.random.default_rng(seed)

    def place(value, *names):
        return jax.device_put(value, layout.sharding(*names))

    def tree():
        kernel = rng.normal(size=(16, 24)).astype(np.float32)
        return {"kernel": place(kernel, "width", "mlp"), "bias": place(kernel[0], None)}

    return State(
        step=place(jnp.int32(7)),
        key=place(jax.random.key(seed)),
        student=tree(),
        ema=tree(),
        gram=None,
        opt_state=(place(jnp.int32(7)), tree()),
        centers={},
        bad_steps=place(jnp.int32(0)),
    )


def like(tree):
    """Its shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def bits(tree):
    """A state's arrays on the host, keys as their words."""
    words = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    return jax.device_get(words)


@pytest.fixture
def here(tmp_path):
    """A layout of eight sharded devices, a state on it, and checkpoints to save it in."""
    layout = mesh.make("fsdp", 8)
    checkpoints = Checkpoints(tmp_path / "pretrain", keep_last=2, keep_every=None)
    yield SimpleNamespace(layout=layout, state=state(layout), checkpoints=checkpoints)
    checkpoints.close()


def test_what_is_restored_equals_what_was_saved_to_the_last_bit(here):
    meta = {"position": 96, "fingerprint": "abc", "config": {"seed": 0}}
    here.checkpoints.save(here.state, step=7, meta=meta)
    here.checkpoints.wait()
    again = Checkpoints(here.checkpoints.directory, keep_last=2, keep_every=None)
    restored = again.restore(like(here.state))
    assert again.latest() == 7
    assert again.restore_meta() == {"format_version": FORMAT_VERSION, "step": 7, **meta}
    assert small.same(bits(restored), bits(here.state))
    pairs = zip(jax.tree.leaves(restored), jax.tree.leaves(here.state), strict=True)
    assert all((a.dtype, a.sharding) == (b.dtype, b.sharding) for a, b in pairs)
    draws = [jax.random.uniform(s.key, (3,)) for s in (restored, here.state)]
    assert small.same(*draws)
    again.close()


@pytest.mark.parametrize(("strategy", "devices"), [("dp", 1), ("dp", 4), ("fsdp", 2)])
def test_a_checkpoint_moves_to_another_mesh(here, strategy, devices):
    here.checkpoints.save(here.state, step=1, meta={})
    here.checkpoints.wait()
    there = state(mesh.make(strategy, devices), seed=1)
    restored = here.checkpoints.restore(like(there))
    assert small.same(bits(restored), bits(here.state))
    kernel = restored.student["kernel"]
    assert len(kernel.sharding.device_set) == devices
    assert kernel.sharding == there.student["kernel"].sharding


def test_the_newest_and_the_multiples_are_kept(tmp_path, here):
    checkpoints = Checkpoints(tmp_path / "kept", keep_last=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(here.state, step=step, meta={})
    checkpoints.close()
    kept = sorted(int(name) for name in os.listdir(tmp_path / "kept"))
    assert kept == [4, 6, 7]


def test_a_step_is_not_saved_twice_and_none_before_the_newest(here):
    here.checkpoints.save(here.state, step=3, meta={"position": 1})
    for step in (3, 2):
        with pytest.raises(RuntimeError, match=f"step {step} not saved; step 3 exists"):
            here.checkpoints.save(here.state, step=step, meta={"position": 2})
    here.checkpoints.wait()
    assert here.checkpoints.restore_meta()["position"] == 1
    assert here.checkpoints.latest() == 3


def test_a_missing_step_is_refused_with_those_there_are(here):
    with pytest.raises(FileNotFoundError, match=r"pretrain has no checkpoint; it has \[\]"):
        here.checkpoints.restore_meta()
    here.checkpoints.save(here.state, step=3, meta={})
    here.checkpoints.save(here.state, step=5, meta={})
    here.checkpoints.wait()
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint 4; it has \[3, 5\]"):
        here.checkpoints.restore(like(here.state), 4)


def test_another_format_is_refused(here):
    here.checkpoints.save(here.state, step=3, meta={})
    here.checkpoints.wait()
    path = here.checkpoints.directory / "3" / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ValueError, match="3 has format 99, this version of dinojax reads format 2"):
        here.checkpoints.restore_meta()


def test_another_tree_is_refused(here):
    here.checkpoints.save(here.state, step=3, meta={})
    here.checkpoints.wait()
    wider = {"kernel": here.state.student["kernel"]}
    with pytest.raises(ValueError, match="bias"):
        here.checkpoints.restore(like(here.state.replace(student=wider)))


def test_a_failure_in_the_background_is_raised_and_leaves_no_checkpoint(here, monkeypatch):
    here.checkpoints.save(here.state, step=1, meta={})
    here.checkpoints.wait()

    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)  # the last thing that a checkpoint needs
        here.checkpoints.save(here.state, step=2, meta={})
        with pytest.raises(StorageError, match="No space left.*step 1 stands"):
            here.checkpoints.wait()
    again = Checkpoints(here.checkpoints.directory, keep_last=2, keep_every=None)
    assert again.latest() == 1
    again.close()


def test_sums_do_not_depend_on_devices_but_on_every_word(here):
    alone = state(mesh.make("dp", 1))
    assert checksum.arrays(alone) == checksum.arrays(here.state)
    kernel = alone.student["kernel"]
    others = (kernel.at[3, 5].add(1e-6), kernel[::-1], kernel.at[0, 0].set(-kernel[0, 0]))
    for other in others:
        changed = alone.replace(student={**alone.student, "kernel": other})
        found = checksum.changed(checksum.arrays(alone), checksum.arrays(changed))
        assert found == ["student/kernel"]


def data_files(folder):
    return [path for path in (folder / "state").rglob("*") if path.parent.name == "d"]


# Orbax reads many arrays at once and drops the errors of all but the first.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("hurt", ["truncated", "bit-flipped", "missing"])
def test_a_damaged_checkpoint_is_refused_with_the_way_on(here, hurt):
    for step in (1, 2):
        here.checkpoints.save(here.state, step=step, meta={})
    here.checkpoints.wait()
    files = data_files(here.checkpoints.directory / "2")
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        if hurt == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif hurt == "missing":
            file.unlink()
        else:
            content[len(content) // 2] ^= 4
            file.write_bytes(content)
    with pytest.raises(Damaged, match=r"2 is damaged: .*Move it away to continue from step 1"):
        here.checkpoints.restore(like(here.state))
    gc.collect()  # the errors that Orbax dropped come to light here, not in a later test
    assert small.same(bits(here.checkpoints.restore(like(here.state), 1)), bits(here.state))


def test_values_that_changed_without_a_trace_are_found(here, monkeypatch):
    true = checksum.arrays

    def other(tree):
        found = true(tree)
        return {**found, "ema/bias": {**found["ema/bias"], "sum": 1}}

    with monkeypatch.context() as patch:
        patch.setattr(checksum, "arrays", other)
        here.checkpoints.save(here.state, step=1, meta={})
        here.checkpoints.wait()
    with pytest.raises(Damaged, match="1 of .* arrays changed on disk, first ema/bias"):
        here.checkpoints.restore(like(here.state))


def test_who_only_looks_changes_nothing(here):
    here.checkpoints.save(here.state, step=1, meta={})
    here.checkpoints.wait()
    directory = here.checkpoints.directory
    (directory / "2.orbax-checkpoint-tmp").mkdir()  # a save under way
    (directory / "3").mkdir()
    before = sorted(os.listdir(directory))
    looking = Checkpoints(directory, keep_last=1, keep_every=None, read_only=True)
    assert looking.restore_meta()["step"] == 1
    looking.close()
    assert sorted(os.listdir(directory)) == before
    owning = Checkpoints(directory, keep_last=1, keep_every=None)
    assert owning.latest() == 1
    owning.close()
    assert {"1", "3.torn"} <= set(os.listdir(directory))


def test_a_second_torn_checkpoint_of_one_step_does_not_block_the_start(tmp_path):
    for _ in range(3):
        (tmp_path / "pretrain" / "3").mkdir(parents=True)
        (tmp_path / "pretrain" / "3" / "part").write_text("half")
        Checkpoints(tmp_path / "pretrain", keep_last=1, keep_every=None).close()
    assert set(os.listdir(tmp_path / "pretrain")) == {"3.torn", "3.torn.2", "3.torn.3"}


def test_where_another_process_is_gone_the_storage_is_not_blamed(here, monkeypatch):
    """Its end breaks the save that all take part in."""
    gone = Lost("process 1 (host1, pid 7) ended without a word", LOST)

    def broken(*_, **__):
        raise RuntimeError("Barrier timed out")

    monkeypatch.setattr(here.checkpoints._manager, "save", broken)
    with pytest.raises(StorageError, match="Barrier timed out"):
        here.checkpoints.save(here.state, step=1, meta={})
    monkeypatch.setattr(here.checkpoints._processes, "lost", lambda: gone)
    with pytest.raises(Lost, match="process 1 .host1, pid 7. ended") as met:
        here.checkpoints.save(here.state, step=1, meta={})
    assert met.value.code == LOST

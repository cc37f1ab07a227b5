"""A checkpoint that was damaged anywhere is refused with the step to go on from, or is equal."""

import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax.checkpoint import meta as metas
from dinojax.checkpoint.manager import FORMAT_VERSION, Checkpoints, Damaged

BATCH = 8
FAST, ALL = 10, 100
TREE = {
    "kernel": jnp.arange(24, dtype=jnp.float32).reshape(4, 6),
    "twin": jnp.ones((6, 4), jnp.float32),
    "step": jnp.int32(2),
}


def meta_of(step: int) -> dict:
    config = {"batch_size": BATCH, "seed": 0, "sizes": [1, 2]}
    return {"position": step * BATCH, "seconds": 1.5, "config": config, "fingerprint": "abc"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "pretrain"
    checkpoints = Checkpoints(directory, keep_last=2, keep_every=None)
    for step in (1, 2):
        checkpoints.save({**TREE, "step": jnp.int32(step)}, step=step, meta=meta_of(step))
    checkpoints.wait()
    checkpoints.close()
    return directory


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def damaged_value(value, rng):
    """Another value of the same kind."""
    if isinstance(value, dict):
        name = sorted(value)[rng.integers(len(value))]
        return {**value, name: damaged_value(value[name], rng)}
    if isinstance(value, list):
        return value[::-1] if value != value[::-1] else [*value, 1]
    if isinstance(value, (int, float)):
        return value + int(rng.integers(1, 9))
    return f"{value}x"


def hurt(step, rng) -> str:
    """Damage a folder in one of many ways; which, in words."""
    files = sorted(path for path in step.rglob("*") if path.is_file())
    data = [path for path in files if path.stat().st_size]
    meta, arrays = step / "meta" / "metadata", step / "arrays" / "metadata"
    kind = rng.choice(["flip", "cut", "remove", "meta", "drop", "arrays", "swap", "other", "grow"])
    if kind in ("flip", "cut", "grow"):
        path = data[rng.integers(len(data))]
        content = bytearray(path.read_bytes())
        if kind == "flip":
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes({"cut": content[:-1], "grow": content + b"x"}.get(str(kind), content))
    elif kind == "remove":
        path = files[rng.integers(len(files))]
        path.unlink()
    elif kind in ("meta", "drop"):
        path, name = meta, None
        names = sorted(json.loads(meta.read_text()))
        name = names[rng.integers(len(names))]
        if kind == "drop":
            edit(meta, lambda content: content.pop(name))
        else:
            edit(meta, lambda content: content.update({name: damaged_value(content[name], rng)}))
        return f"{kind} {name}"
    elif kind == "arrays":
        path = arrays
        names = ["kernel", "twin", "step"]
        name = names[rng.integers(3)]
        edit(arrays, lambda content: content.update({name: damaged_value(content[name], rng)}))
    elif kind == "swap":
        path = arrays

        def swap(content):
            kernel, twin = content["kernel"]["shape"], content["twin"]["shape"]
            content["kernel"]["shape"], content["twin"]["shape"] = twin, kernel

        edit(arrays, swap)
    else:  # whole parts of another step
        part = ["meta", "arrays", "state"][rng.integers(3)]
        path = step / part
        shutil.rmtree(path)
        shutil.copytree(step.parent / "1" / part, path)
    return f"{kind} {path.relative_to(step)}"


def outcome(directory) -> str:
    """How a start from it ends: "refused", "earlier" (taken as torn), "equal" or else."""
    checkpoints = Checkpoints(directory, keep_last=2, keep_every=None)
    try:
        if checkpoints.latest() != 2:
            return "earlier" if checkpoints.latest() == 1 else "lost"
        meta = checkpoints.restore_meta(2)
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), TREE
        )
        state = checkpoints.restore(like, 2)
    except (Damaged, ValueError) as error:
        return "refused" if "continue from step 1" in str(error) else f"no way on: {error}"
    finally:
        checkpoints.close()
        gc.collect()
    same = all(np.array_equal(state[name], TREE[name]) for name in TREE)
    kept = meta == {"format_version": FORMAT_VERSION, "step": 2, **meta_of(2)}
    return "equal" if same and kept else f"other values: {meta} {state}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "seeds", [range(FAST), pytest.param(range(FAST, ALL), marks=pytest.mark.exhaustive)], ids=str
)
def test_whatever_is_damaged_is_refused_with_the_way_on_or_changes_nothing(saved, tmp_path, seeds):
    seen = {}
    for seed in seeds:
        directory = tmp_path / str(seed)
        shutil.copytree(saved, directory)
        what = hurt(directory / "2", np.random.default_rng(seed))
        seen[f"{seed}: {what}"] = outcome(directory)
    bad = {what: end for what, end in seen.items() if end not in ("refused", "earlier", "equal")}
    assert not bad
    assert list(seen.values()).count("refused") >= len(seen) // 3  # they do damage it


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("position", 24, "its meta is not what was saved"),
        ("step", 3, "its meta is not what was saved"),
        ("config", {"batch_size": 4}, "its meta is not what was saved"),
        ("arrays_digest", "0", "its meta is not what was saved"),
    ],
)
def test_a_changed_value_of_meta_is_found_by_its_digest(key, value, told):
    meta = metas.sealed({"format_version": FORMAT_VERSION, "step": 2, **meta_of(2)}, {})
    assert metas.fault(json.loads(json.dumps(meta)), 2, FORMAT_VERSION) is None
    assert metas.fault({**meta, key: value}, 2, FORMAT_VERSION) == told
    assert metas.fault(meta, 3, FORMAT_VERSION) == "its meta is of step 2"


def test_a_checkpoint_without_a_digest_continues_unless_its_values_contradict_each_other():
    """Those that were saved before there was one."""
    meta = {"format_version": FORMAT_VERSION, "step": 8, **meta_of(8)}
    assert metas.fault(meta, 8, FORMAT_VERSION) is None
    told = metas.fault({**meta, "position": 72}, 8, FORMAT_VERSION)
    assert told == "its meta says position 72, where 8 steps of 8 images make 64"
    assert metas.fault({**meta, "step": 9}, 8, FORMAT_VERSION) == "its meta is of step 9"
    assert metas.arrays_fault(meta, {"anything": 1}) is None

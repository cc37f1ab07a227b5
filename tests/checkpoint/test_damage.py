"""A checkpoint that was damaged anywhere is refused with the step to go on from, or is equal."""

import gc
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinojax import config as configs
from dinojax.checkpoint import meta as metas
from dinojax.checkpoint.manager import FORMAT_VERSION, Checkpoints, Damaged
from dinojax.sharding import mesh
from dinojax.train import program
from dinojax.train.checks import check_data

EARLIER = Path(__file__).parent.parent / "recorded" / "earlier"  # of release 0.1.0
BATCH = 8
FAST, ALL = 10, 100
TREE = {
    "kernel": jnp.arange(24, dtype=jnp.float32).reshape(4, 6),
    "twin": jnp.ones((6, 4), jnp.float32),
    "step": jnp.int32(2),
}


def meta_of(step: int) -> dict:
    config = {"batch_size": BATCH, "seed": 0, "sizes": [1, 2]}
    data = {"fingerprint": "abc", "num_images": 99}
    return {"position": step * BATCH, "seconds": 1.5, "config": config, **data}


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
        names = sorted(json.loads(arrays.read_text()))
        name = names[rng.integers(len(names))]
        edit(arrays, lambda content: content.update({name: damaged_value(content[name], rng)}))
    elif kind == "swap":
        path = arrays

        def swap(content):
            of_shape = {tuple(array["shape"]): name for name, array in content.items()}
            (a, one), (b, other) = sorted(of_shape.items())[-2:]
            content[one]["shape"], content[other]["shape"] = b, a

        edit(arrays, swap)
    else:  # whole parts of another step
        part = ["meta", "arrays", "state"][rng.integers(3)]
        path = step / part
        shutil.rmtree(path)
        shutil.copytree(step.parent / "1" / part, path)
    return f"{kind} {path.relative_to(step)}"


def outcome(directory) -> str:
    """How a start from step 2 ends: "refused", "earlier" (taken as torn), "equal" or else."""
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


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """(Checkpoints of an earlier release, none of whose meta has a digest; their state)."""
    directory = tmp_path_factory.mktemp("earlier") / "pretrain"
    shutil.copytree(EARLIER / "run" / "checkpoints" / "pretrain", directory)
    shutil.copytree(directory / "4", directory / "1")  # parts of another step
    edit(directory / "1" / "meta" / "metadata", lambda meta: meta.update(step=1, position=8))
    edit(directory / "1" / "arrays" / "metadata", lambda arrays: arrays["step"].update(sum=1))
    config = configs.load(str(EARLIER / "run"))
    built = program.build(config, mesh.from_section(config.mesh))
    with mesh.use(built.layout):
        like = built.new_state()
    checkpoints = Checkpoints(directory, keep_last=2, keep_every=None, read_only=True)
    state = checkpoints.restore(like, 4)
    checkpoints.close()
    return directory, state


class Images:
    fingerprint = json.loads((EARLIER / "run/checkpoints/pretrain/4/meta/metadata").read_text())[
        "fingerprint"
    ]

    def __len__(self):
        return 16


def continued(directory, like) -> str:
    """How a run goes on: as `outcome`; "equal" in all that its end depends on."""
    checkpoints = Checkpoints(directory, keep_last=2, keep_every=None)
    try:
        if checkpoints.latest() != 4:
            return "earlier" if checkpoints.latest() == 1 else "lost"
        meta, state = checkpoints.restore_meta(4), checkpoints.restore(like, 4)
        check_data(meta, Images())
    except (Damaged, ValueError) as error:
        ways = ("continue from step 1", "--accept-new-data")
        return "refused" if any(way in str(error) for way in ways) else f"no way on: {error}"
    finally:
        checkpoints.close()
        gc.collect()
    same = jax.tree.map(lambda a, b: bool((_bits(a) == _bits(b)).all()), state, like)
    return "equal" if all(jax.tree.leaves(same)) and meta["position"] == 32 else f"other: {meta}"


def _bits(leaf) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).view(np.uint8) if leaf.ndim else np.asarray(leaf)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "seeds", [range(FAST), pytest.param(range(FAST, ALL), marks=pytest.mark.exhaustive)], ids=str
)
def test_a_damaged_checkpoint_of_an_earlier_release_too(earlier, tmp_path, seeds):
    directory, state = earlier
    seen = {}
    for seed in seeds:
        copied = tmp_path / str(seed)
        shutil.copytree(directory, copied)
        what = hurt(copied / "4", np.random.default_rng(seed))
        seen[f"{seed}: {what}"] = continued(copied, state)
    bad = {what: end for what, end in seen.items() if end not in ("refused", "earlier", "equal")}
    assert not bad
    assert list(seen.values()).count("refused") >= len(seen) // 3


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
    for lost in metas.ALWAYS:
        less = {name: value for name, value in meta.items() if name != lost}
        assert metas.fault(less, 8, FORMAT_VERSION) == f"its meta has no {lost}"
    assert metas.arrays_fault(meta, {"anything": 1}) is None

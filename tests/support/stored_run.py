"""What a finished run left on disk, as plain values that are equal only if every bit is."""

import collections
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from dinojax.runs.scalars import read_metrics

# Columns that are no result.
TIMES = ("data_wait", "images_per_second", "train_seconds", "compile_seconds", "time")


def differences(got: Path, want: Path, num_steps: int) -> list[str]:
    """In words, what of a finished run is not equal to another; empty if everything is.

    Of all stages, and of all students of a family. num_steps: of all stages.
    """
    found = order_differences(got, want, num_steps)
    for home in homes(want):
        own, where = got / home.relative_to(want), f"{home.name}, " if home != want else ""
        for stage, step in ends(home).items():
            pair = (state(run, step, stage=stage) for run in (own, home))
            found += _unequal(f"{where}state of {stage}", *pair)
        found += _unequal(f"{where}pictures", pictures(own, num_steps), pictures(home, num_steps))
        rows = [metrics(run) for run in (own, home)]
        if rows[0] != rows[1]:
            counts = [collections.Counter(row["step"] for row in part) for part in rows]
            odd = sorted(((counts[0] - counts[1]) + (counts[1] - counts[0])).elements())
            changed = [b["step"] for a, b in zip(*rows, strict=False) if a != b]
            found.append(
                f"{where}metrics: {len(rows[0])} rows for {len(rows[1])}, too many or few at steps "
                f"{odd}, other values first at step {changed[0] if changed else None}"
            )
    return found


def homes(run: Path) -> list[Path]:
    """The run, or the students of a family."""
    return (
        [run]
        if (run / "metrics.jsonl").exists()
        else sorted(p.parent for p in run.glob("*/metrics.jsonl"))
    )


def ends(run: Path) -> dict[str, int]:
    """Stage -> the step of its last checkpoint."""
    folders = sorted((run / "checkpoints").iterdir())
    return {f.name: max(int(p.name) for p in f.iterdir() if p.name.isdecimal()) for f in folders}


def order_differences(got: Path, want: Path, num_steps: int) -> list[str]:
    """The same of the images of every step alone, for runs on other devices."""
    return _unequal("images", order(got, num_steps), order(want, num_steps))


def _unequal(what: str, ours: dict, theirs: dict) -> list[str]:
    bad = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    return [f"{what}: {len(bad)} of {len(theirs)} differ, first {bad[0]}"] if bad else []


def metrics(run: Path) -> list[dict]:
    """Rows of metrics.jsonl without the columns that are no result."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def state(run: Path, step: int, *, stage: str = "pretrain") -> dict[str, tuple]:
    """Path -> (dtype, shape, digest of the bytes) of every array of a checkpoint; its position."""
    folder = (run / "checkpoints" / stage / str(step)).absolute()
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    tree = reader.metadata(folder / "state").item_metadata.tree
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    arrays = reader.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=args))
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.asarray(leaf)
        digest = hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
        found[jax.tree_util.keystr(path)] = (str(leaf.dtype), leaf.shape, digest)
    meta = ocp.JsonCheckpointHandler().restore(folder / "meta")
    return {**found, "position": (meta["position"],), "images": (meta["fingerprint"],)}


def order(run: Path, num_steps: int) -> dict[int, list]:
    """Step -> the different lists of image ids it was ever taken with; one, if all is well.

    Several processes write a file each, whose lists are parts of one.
    """
    steps = range(1, num_steps + 1)
    found = _lists(run.with_suffix(".order"), steps)
    files = [_lists(path, steps) for path in sorted(run.parent.glob(f"{run.name}.order.*"))]
    for step in steps if files else ():
        shares = [lists[step] for lists in files]
        if all(len(share) == 1 for share in shares):
            whole = [number for share in shares for number in share[0]]
            found[step] += [whole] if whole not in found[step] else []
            continue
        # Those of a process that was killed, where all others were so before the step.
        for index, share in enumerate(shares):
            slices = [slice(index * len(ids), (index + 1) * len(ids)) for ids in share]
            pairs = zip(share, slices, strict=True)
            found[step] += [i for i, s in pairs if all(whole[s] != i for whole in found[step])]
    return found


def _lists(path: Path, steps: range) -> dict[int, list]:
    found: dict[int, list] = {step: [] for step in steps}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if row["ids"] not in found[row["step"]]:
            found[row["step"]].append(row["ids"])
    return found


def pictures(run: Path, num_steps: int) -> dict[str, str]:
    """Name -> digest of what was drawn, and of the numbers of the final comparison."""
    del num_steps
    found = {p.name: _digest(p.read_bytes()) for p in sorted((run / "pictures").glob("*.png"))}
    if (path := run / "quickstart.json").exists():
        numbers = json.loads(path.read_text())
        kept = {name: value for name, value in numbers.items() if name not in TIMES}
        found[path.name] = json.dumps(kept)
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

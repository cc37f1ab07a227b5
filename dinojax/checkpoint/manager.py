"""Checkpoints of a stage: state, data position, resolved config and versions, saved together.

Orbax writes in the background and renames when all is on disk: a checkpoint exists whole or not
at all. Restoring always goes to the shardings of this run, so the devices may have changed, and
compares checksums, so that what is restored is what was saved.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from dinojax.checkpoint import checksum, orbax
from dinojax.checkpoint import meta as metas
from dinojax.config import Config
from dinojax.distributed import process_group
from dinojax.distributed.interrupt import StorageError
from dinojax.files import full
from dinojax.files.drafts import set_aside

log = logging.getLogger(__name__)

Tree = TypeVar("Tree")

FORMAT_VERSION = 2
COMMITTED = "commit_success.txt"  # orbax writes it last: a directory without it is torn


class Damaged(ValueError):
    """A checkpoint that cannot be read, or holds other values than were saved."""


class Checkpoints:
    """The checkpoints under one directory, `RUN/checkpoints/STAGE/STEP/`."""

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int,
        keep_every: int | None,
        read_only: bool = False,
    ):
        """keep_last: newest ones kept. keep_every: multiples of it are kept for good, or None.

        read_only: for those who look at a run that may be going on. Without it, what killed runs
        left half-written is removed or renamed.

        All processes that act together make them together (hosts.current).
        """
        self.directory, self._read_only = Path(directory), read_only
        self._processes = process_group.current()
        if not read_only:
            if self._processes.is_main:
                _set_torn_aside(self.directory)
            self._processes.settle("torn checkpoints")
        policies = ocp.checkpoint_managers
        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._manager = orbax.manager(
            self.directory.absolute(),
            self._processes,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )

    @classmethod
    def reader(cls, directory: str | Path) -> "Checkpoints":
        """Checkpoints of a stage that is only looked at."""
        return cls(directory, keep_last=1, keep_every=None, read_only=True)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: Any, *, step: int, meta: dict) -> None:
        """Start saving in the background.

        meta: JSON values that are restored with the state. Raises StorageError for what this or
        an earlier save met on its way to the disk, RuntimeError if this step, or a later one,
        already exists: nothing is overwritten, and no newer state is left behind.
        """
        if (latest := self.latest()) is not None and step <= latest:
            raise RuntimeError(f"{self.directory}: step {step} not saved; step {latest} exists.")
        arrays = checksum.arrays(state)
        meta = {"format_version": FORMAT_VERSION, "step": step, **meta}
        items = ocp.args.Composite(
            state=orbax.save_args(state, self._processes),
            meta=ocp.args.JsonSave(metas.sealed(meta, arrays)),
            arrays=ocp.args.JsonSave(arrays),
        )
        with self._naming_what_stands():
            saved = self._manager.save(step, args=items, force=True)
        if not saved:
            raise RuntimeError(f"{self.directory}: Orbax did not save step {step}.")

    def restore_meta(self, step: int | None = None) -> dict:
        """The JSON values saved with a step (the newest one by default).

        Raises Damaged for others than were saved.
        """
        return metas.opened(self._meta(self._existing(step)))

    def _meta(self, step: int) -> dict:
        """With the digests."""
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        read = lambda: metas.checked(self._manager.restore(step, args=items)["meta"])  # noqa: E731
        meta = self._readable(step, read)
        if (fault := metas.fault(meta, step, FORMAT_VERSION)) is not None:
            raise Damaged(self._advice(step, fault))
        if meta["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{self.directory / str(step)} has format {meta['format_version']}, this version "
                f"of dinojax reads format {FORMAT_VERSION}. {self._move(step)}"
            )
        return meta

    def _arrays(self, step: int) -> dict[str, dict]:
        """Shapes, dtypes and sums of what was saved."""
        meta, items = self._meta(step), ocp.args.Composite(arrays=ocp.args.JsonRestore())
        saved = self._readable(step, lambda: self._manager.restore(step, args=items)["arrays"])
        if (fault := metas.arrays_fault(meta, saved)) is not None:
            raise Damaged(self._advice(step, fault))
        return saved

    def restore(self, like: Tree, step: int | None = None) -> Tree:
        """The state of a step, in the shapes, dtypes and shardings of `like`.

        Raises FileNotFoundError if there is no such step, ValueError for a tree that differs, and
        Damaged if an array is not what was saved.
        """
        step = self._existing(step)
        saved = self._arrays(step)
        self._refuse_others(step, saved, checksum.shapes(like))
        items = ocp.args.Composite(state=orbax.restore_args(like, self._processes))
        state = self._readable(step, lambda: self._manager.restore(step, args=items)["state"])
        if wrong := checksum.changed(saved, checksum.arrays(state)):
            what = f"{len(wrong)} of {len(saved)} arrays changed on disk, first {wrong[0]}"
            raise Damaged(self._advice(step, what))
        return state

    def restore_parts(self, like: dict[str, Any], step: int | None = None) -> dict[str, Any]:
        """Some parts of a saved state, such as {"ema": {"backbone": ...}}, in the shape of `like`.

        For other stages and runs, whose states need not have the same parts. Raises as `restore`.
        """
        step = self._existing(step)
        saved = self._arrays(step)
        wanted = checksum.shapes(like)
        theirs = {name: array for name, array in saved.items() if name in wanted}
        self._refuse_others(step, theirs, wanted)
        args = jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(
                sharding=x.sharding, global_shape=x.shape, dtype=x.dtype
            ),
            like,
        )
        restore = ocp.args.PyTreeRestore(item=like, restore_args=args, partial_restore=True)
        found = self._readable(
            step, lambda: self._reader().restore(self._state(step), args=restore)
        )
        if wrong := checksum.changed(theirs, checksum.arrays(found)):
            what = f"{len(wrong)} of {len(theirs)} arrays changed on disk, first {wrong[0]}"
            raise Damaged(self._advice(step, what))
        return found

    def _refuse_others(self, step: int, saved: dict[str, dict], wanted: dict[str, dict]) -> None:
        if lines := checksum.differences(saved, wanted):
            what = f"{self.directory / str(step)} holds other arrays than this config makes"
            lines.append(f"If it is not the config that changed: {self._move(step)}")
            raise ValueError("\n  ".join([f"{what}:", *lines]))

    def _readable(self, step: int, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # a file may be missing, cut, or hold anything
            cause = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise Damaged(self._advice(step, cause)) from error

    def _advice(self, step: int, cause: str) -> str:
        return f"{self.directory / str(step)} is damaged: {cause}. {self._move(step)}"

    def _move(self, step: int) -> str:
        others = [other for other in self._manager.all_steps() if other != step]
        move = f"step {max(others)}" if others else "the start, for there is no other checkpoint"
        return f"Move it away to continue from {move}."

    def shapes(self, part: str, step: int) -> dict[str, Any]:
        """Nested shapes and dtypes of one part of a saved state, such as `ema`."""
        tree = self._reader().metadata(self._state(step)).item_metadata.tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree[part])

    def read_leaf(self, path: tuple[str, ...], like: jax.ShapeDtypeStruct, step: int) -> np.ndarray:
        """One array of a saved state, such as ("ema", "backbone", "cls_token"), on this host."""
        item: Any = like
        for key in reversed(path):
            item = {key: item}
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
        found = self._reader().restore(self._state(step), args=restore)
        for key in path:
            found = found[key]
        return found

    def _reader(self) -> ocp.Checkpointer:
        return orbax.reader(self._processes)

    def _state(self, step: int) -> Path:
        return self.directory.absolute() / str(self._existing(step)) / "state"

    def check(self) -> None:
        """Raise StorageError if a save that runs in the background has failed. Costs nothing."""
        with self._naming_what_stands():
            self._manager.check_for_errors()
            if not self.is_saving:
                self._manager.wait_until_finished()  # raises what ended it, or returns at once

    @property
    def is_saving(self) -> bool:
        """Whether a save runs in the background."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Until everything started is on disk; raises StorageError for what went wrong there."""
        with self._naming_what_stands():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _naming_what_stands(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if (lost := self._processes.lost()) is not None:
                raise lost from error
            whole = [p.parent.name for p in self.directory.glob(f"*/{COMMITTED}")]
            last = max(map(int, whole)) if whole else None
            stands = f"step {last} stands" if whole else "there is no checkpoint yet"
            raise StorageError(
                f"{self.directory}: a checkpoint could not be written "
                f"({type(error).__name__}: {error}); {stands}. {full.WAY_ON}"
            ) from error

    def close(self) -> None:
        """Release threads; what a save met was raised by `check` or `wait` and is logged here."""
        try:
            self._manager.close()
        except Exception as error:  # whatever the storage raises
            if self._processes.lost() is not None:
                return  # which is told
            log.error("%s: %s", self.directory, error)

    def _existing(self, step: int | None) -> int:
        steps = sorted(self._manager.all_steps())
        if self._read_only:  # torn ones are still in place
            steps = [s for s in steps if (self.directory / str(s) / COMMITTED).exists()]
        if step is None and steps:
            return steps[-1]
        if step is None or step not in steps:
            raise FileNotFoundError(
                f"{self.directory} has no checkpoint{'' if step is None else f' {step}'}; "
                f"it has {steps}."
            )
        return step


def _set_torn_aside(directory: Path) -> None:
    """Rename steps that were never completed, so that nothing restores or trips over them."""
    for path in directory.glob("*"):
        if path.name.isdigit() and path.is_dir() and not (path / COMMITTED).exists():
            aside = set_aside(path, "torn")
            log.warning("%s was never completed; renamed to %s", path, aside.name)


def open_checkpoints(config: Config, directory: Path, *, read_only=False) -> Checkpoints:
    return Checkpoints(
        directory / "checkpoints" / config.stage,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        read_only=read_only,
    )

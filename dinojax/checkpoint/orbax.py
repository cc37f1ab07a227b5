"""How Orbax writes and reads states of a process group: all processes of a run, or some of them.

Orbax takes it that all processes of a job save the same arrays together. For a part it has options
that say otherwise, one by one: who is there, who writes what there is one of, under which names
they wait for each other. A part of one process needs a label on its arrays besides (`_labelled`).
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding

# Not public, but what Orbax's own handler of arrays is made with; it holds the kinds of PRNG keys.
from orbax.checkpoint._src.metadata.array_metadata_store import Store

from dinojax.distributed.process_group import ProcessGroup
from dinojax.distributed.subgroup import Subgroup

COPY = "copy"  # the axis of a mesh that is a label alone (`_labelled`)


def manager(directory: Path, processes: ProcessGroup, **options: Any) -> ocp.CheckpointManager:
    """Of the checkpoints in a directory. options: of Orbax, besides those of several processes."""
    if jax.process_count() == 1:
        return ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(create=not options["read_only"], **options),
        )
    # Students save in any order and at once: each waits under names of its own, and nothing goes
    # by the number of saves so far, which differs where a process has not all students.
    together = _together(processes, str(directory))
    if isinstance(processes, Subgroup):
        if processes.is_main and not options["read_only"]:
            directory.mkdir(parents=True, exist_ok=True)
        processes.settle("directory of checkpoints")
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            create=not options["read_only"] and not isinstance(processes, Subgroup),
            multiprocessing_options=together,
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            **options,
        ),
        handler_registry=_handlers(processes, together)
        if isinstance(processes, Subgroup)
        else None,
    )


def reader(processes: ProcessGroup) -> ocp.Checkpointer:
    """Reads parts of a state, together with the other processes of a part."""
    if not isinstance(processes, Subgroup):
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    together = _together(processes, f"reader {processes.members}")
    return ocp.Checkpointer(_arrays(processes, together), multiprocessing_options=together)


def save_args(state: Any, processes: ProcessGroup) -> Any:
    """What a manager's `save` takes for a state."""
    if not isinstance(processes, Subgroup):
        return ocp.args.StandardSave(state)
    return ocp.args.PyTreeSave(_labelled(state, processes) if processes.count == 1 else state)


def restore_args(like: Any, processes: ProcessGroup) -> Any:
    """What a manager's `restore` takes for a state. like: shapes, dtypes and shardings."""
    if not isinstance(processes, Subgroup):
        return ocp.args.StandardRestore(like)
    args = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.args.PyTreeRestore(item=like, restore_args=args)


def _together(processes: ProcessGroup, name: str) -> ocp.options.MultiprocessingOptions:
    if not isinstance(processes, Subgroup):
        return ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)
    return ocp.options.MultiprocessingOptions(
        primary_host=processes.members[0],
        active_processes=set(processes.members),
        barrier_sync_key_prefix=name,
    )


class _Unchecked:
    """In place of Orbax's comparison of what processes wrote, for which one alone looks torn."""

    def validate_all_array_metadatas(self, found: dict) -> None:
        assert len(found) == 1


def _arrays(processes: ProcessGroup, together) -> ocp.PyTreeCheckpointHandler:
    arrays = ocp.type_handlers.ArrayHandler(
        primary_host=processes.members[0],
        array_metadata_store=Store(primary_host=processes.members[0]),
        use_replica_parallel=False,  # every part is written by the first device that has it
    )
    own: dict[str, Any] = {"array_metadata_validator": _Unchecked()} if processes.count == 1 else {}
    return ocp.PyTreeCheckpointHandler(
        multiprocessing_options=together,
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
        **own,
    )


def _handlers(processes: ProcessGroup, together) -> Any:
    """Of all that a checkpoint holds: the state, and texts beside it."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays = _arrays(processes, together)
    for args in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        registry.add("state", args, arrays)
    for name in ("meta", "arrays"):
        text = ocp.JsonCheckpointHandler(multiprocessing_options=together)
        for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add(name, args, text)
    return registry


def _labelled(tree: Any, processes: ProcessGroup) -> Any:
    """The arrays as the first half of a mesh over twice as many devices, of which all have copies.

    In a job of several processes Orbax refuses arrays that lie in one of them alone. Nothing is
    copied, and no other device takes part: Orbax writes the first copy, which is here.
    """

    def label(x: jax.Array) -> jax.Array:
        own = x.sharding
        assert isinstance(own, NamedSharding)
        beside = [device for device in jax.devices() if device.process_index != processes.index]
        devices = np.array(beside[: own.mesh.size], dtype=object).reshape(own.mesh.devices.shape)
        both = Mesh(
            np.stack([own.mesh.devices, devices]),
            (COPY, *own.mesh.axis_names),
            axis_types=(own.mesh.axis_types[0], *own.mesh.axis_types),
        )
        parts = [shard.data for shard in x.addressable_shards]
        place = NamedSharding(both, own.spec)
        return jax.make_array_from_single_device_arrays(x.shape, place, parts, dtype=x.dtype)

    return jax.tree.map(label, tree)

"""Arrays passed from a mesh to another one, or to a part of it, without a copy or a message.

Plain transfers between meshes fail across processes. So the program that makes an array puts on
every device what that device needs later, and the parts are given a new label here.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding


def view_on(tree: Any, sharding: NamedSharding) -> Any:
    """The arrays with this sharding, whose devices all hold what it wants of them already.

    Raises ValueError where a device holds another part.
    """
    return jax.tree.map(lambda x: _view(x, sharding), tree)


def _view(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    want, have = (s.devices_indices_map(x.shape) for s in (sharding, x.sharding))
    for device, part in want.items():
        if have.get(device) != part:
            raise ValueError(
                f"{device} holds {have.get(device)} of an array {x.shape}, but is to have {part}."
            )
    parts = {shard.device: shard.data for shard in x.addressable_shards}
    own = [parts[device] for device in want if device in parts]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, own, dtype=x.dtype)

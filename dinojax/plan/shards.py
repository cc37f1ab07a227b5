"""Where each parameter of a recipe's student lives, from shapes alone, in a process of its own.

    python -m dinojax.plan.shards '{"recipe": "tiny", "overrides": [], "student": null}'

Prints a JSON list of {"name", "shape", "axes", "sharded", "bytes", "device_bytes"}, or
{"refused": message}.
"""

import json
import math
import sys

import jax

from dinojax import config as configs
from dinojax.config import ConfigError
from dinojax.models.layers import Named
from dinojax.models.params import init_params
from dinojax.plan.targets import replaced
from dinojax.sharding import mesh
from dinojax.sharding.axes import device_axes
from dinojax.train import program


def main(argument: str) -> None:
    asked = json.loads(argument)
    try:
        found: list | dict = shards(asked["recipe"], asked["overrides"], asked["student"])
    except ValueError as error:
        found = {"refused": str(error)}
    print(json.dumps(found), flush=True)


def shards(recipe: str, overrides: list[str], student: str | None = None) -> list[dict]:
    """A row per parameter, over all devices jax sees. student: of a recipe that has several.

    Raises ValueError for parameters that cannot be sharded, naming all that cannot.
    """
    devices = [f"mesh.devices={jax.device_count()}"]
    given = replaced(overrides, devices)
    if student is None:
        config = configs.load(recipe, given)
    else:
        config = configs.load_students(recipe, given)[student][0]
    if config.text.enabled:
        raise ConfigError(
            f"stage {config.stage} aligns text, whose parameters are in no table; `dinojax plan "
            f"--config {recipe} --target cpu:{jax.device_count()}` tells their bytes on a device."
        )
    layout = mesh.from_section(config.mesh)
    objective = program.build_objective(config, images_per_step=config.group_size)
    boxed = jax.eval_shape(lambda: init_params(objective, jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, Named)  # noqa: E731
    params = {
        jax.tree_util.keystr(path, simple=True, separator="/"): box
        for path, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box)
    }
    mesh.check(layout, {name: (box.value.shape, box.names) for name, box in params.items()})
    return [_row(name, box, layout) for name, box in params.items()]


def _row(name: str, box: Named, layout: mesh.Layout) -> dict:
    shape = box.value.shape
    device_shape = layout.sharding(*box.names).shard_shape(shape)
    sharded = {
        str(axis): " x ".join(
            f"{part}={layout.mesh.shape[part]}"
            for part in device_axes(layout.strategy, axis)
            if layout.mesh.shape[part] > 1
        )
        for axis in box.names
    }
    size = box.value.dtype.itemsize
    return {
        "name": name,
        "shape": list(shape),
        "axes": list(box.names),
        "sharded": {axis: over for axis, over in sharded.items() if over},
        "bytes": math.prod(shape) * size,
        "device_bytes": math.prod(device_shape) * size,
    }


if __name__ == "__main__":
    main(sys.argv[1])

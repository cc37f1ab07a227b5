"""What probes of patches share: their two folders, and a sweep of heads trained on crops."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.config import ConfigError
from dinojax.eval.adamw import Settings
from dinojax.eval.contract import Setting
from dinojax.eval.linear_head import Bank, new_bank
from dinojax.eval.map_folder import MapFolder, has_maps, open_maps
from dinojax.eval.network import Network
from dinojax.eval.patch_maps import patch_maps

STATED = ("num_classes", "zero_is_unlabelled", "per_metre")  # keys that a layout may know


def open_pair(
    section: SimpleNamespace, setting: Setting, name: str, *, kind: str = "maps"
) -> tuple[MapFolder, MapFolder, SimpleNamespace] | None:
    """(folder to learn from, folder to be judged by, section with what their layout states).

    None where no folders are named. Raises ConfigError for one without the other and for windows
    that are not whole patches.
    """
    knn = setting.config.knn
    paths = {
        f"{name}.train": section.train or (knn.bank if has_maps(knn.bank, kind) else ""),
        f"{name}.val": section.val or (knn.query if has_maps(knn.query, kind) else ""),
    }
    if not any(paths.values()):
        return None
    if not all(paths.values()):
        missing = next(key for key, path in paths.items() if not path)
        raise ConfigError(f"{missing} is empty; set both {' and '.join(paths)} to a folder.")
    if section.size % setting.patch_size:
        raise ConfigError(
            f"{name}.size={section.size} is no multiple of the patch of"
            f" {setting.patch_size} pixels."
        )
    channels = setting.config.image.channels
    train, val = (
        open_maps(path, channels=channels, key=key, kind=kind, learn=key.endswith("train"))
        for key, path in paths.items()
    )
    if train.facts != val.facts:
        raise ConfigError(
            f"{' and '.join(f'{key}={path}' for key, path in paths.items())} differ in what their"
            f" labels mean ({dict(train.facts)}, {dict(val.facts)})."
        )
    return train, val, train.known(section, *(key for key in STATED if hasattr(section, key)))


def trained(
    network: Network,
    num_images: int,
    view: Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]],
    step: Callable[[Bank, jax.Array, jax.Array, Settings, int], Bank],
    *,
    section: SimpleNamespace,
    patch_size: int,
    outputs: int,
    hyper: Callable[[int], Sequence[tuple[float, float, float]]],
    seed: int,
) -> Bank:
    """Heads after section.num_steps steps on crops, a row of `hyper` each.

    view: (index of an image, random numbers) -> normalised crop and what is true of it. Every image
    comes once before one comes again. step: (heads, patches, truth, settings, number) -> heads.
    hyper: number of a step -> (rate, weight decay, beta1) of every head.
    """
    rng, order = np.random.default_rng(seed), list[int]()
    bank: Bank | None = None
    for number in range(section.num_steps):
        while len(order) < section.batch_size:
            order += rng.permutation(num_images).tolist()
        views = [view(index, rng) for index in order[: section.batch_size]]
        order = order[section.batch_size :]
        pixels, truth = (np.stack(parts) for parts in zip(*views, strict=True))
        patches = patch_maps(network, pixels, patch_size=patch_size, batch_size=section.batch_size)
        rows = hyper(number)
        if bank is None:
            shape: dict[str, Any] = {"width": patches.shape[-1], "outputs": outputs}
            bank = new_bank(jax.random.key(seed), num_heads=len(rows), **shape)
        settings = Settings(*(jnp.asarray(v, jnp.float32) for v in zip(*rows, strict=True)))
        bank = step(bank, jnp.asarray(patches), jnp.asarray(truth), settings, number)
    assert bank is not None
    return bank

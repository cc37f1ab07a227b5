"""A patch embedding for another number of channels, made from the one that there is."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dinojax.weights.tensors import Tensor, Tensors
from dinojax.weights.writers import Network

# Name of the first kernel in the reference: of ViTs, of ConvNeXts
NAMES = ("patch_embed.proj.weight", "downsample_layers.0.0.weight")
WAYS = ("repeat", "mean", "zero")


def inflate(kernel: Tensor, channels: int, how: str | Sequence[int]) -> Tensor:
    """Kernel [D, C, p, p] for `channels` channels.

    repeat: the old channels in turn, times C / channels, so that equal channels give the same
    response as before. mean: their mean in every channel, likewise scaled. zero: the old channels
    first, the further ones see nothing. A list gives for each new channel the old one to copy, -1
    for none; nothing is scaled. Raises ValueError for anything else.
    """
    old = kernel.shape[1]
    if isinstance(how, str) and how not in WAYS:
        raise ValueError(
            f"--inflate {how} is unknown; choose of {', '.join(WAYS)}, or a list such as 0,1,2,-1."
        )
    if how == "zero" and channels < old:
        raise ValueError(f"--inflate zero cannot drop channels ({old} to {channels}); give a list.")
    if not isinstance(how, str):
        if len(how) != channels or not all(-1 <= number < old for number in how):
            raise ValueError(
                f"--inflate {','.join(map(str, how))} must name, for each of {channels} channels, "
                f"one of 0 to {old - 1}, or -1."
            )

    def layout(x: np.ndarray) -> np.ndarray:
        if how == "mean":
            whole = x.mean(axis=1, keepdims=True, dtype=np.float32).astype(x.dtype)
            return np.repeat(whole, channels, axis=1) * x.dtype.type(old / channels)
        if how == "repeat":
            return x[:, np.arange(channels) % old] * x.dtype.type(old / channels)
        zero = [*range(old), *[-1] * (channels - old)]
        picked = np.asarray(zero if isinstance(how, str) else how)
        return np.where(picked[:, None, None] >= 0, x[:, picked], 0).astype(x.dtype)

    return kernel.map(layout)


def with_channels(network: Network, channels: int, how: str | None) -> Network:
    """The network for another number of channels; how: in the words of `--inflate`."""
    if how is None:
        raise ValueError(
            f"--channels {channels}: the file has {network.spec.channels}; say how with --inflate "
            f"{' | '.join(WAYS)} | LIST."
        )
    named = how in WAYS or not how.replace(",", "").replace("-", "").isdigit()
    way = how if named else [int(number) for number in how.split(",")]
    (name,) = (name for name in NAMES if name in network.tensors)
    kernel = inflate(network.tensors[name], channels, way)
    tensors: Tensors = {**network.tensors, name: kernel}
    # Statistics of the old channels say nothing about the new ones.
    unknown = dataclasses.replace(network.preprocessing, mean=None, std=None)
    return dataclasses.replace(
        network,
        spec=dataclasses.replace(network.spec, channels=channels),
        tensors=tensors,
        preprocessing=unknown,
        origin={**network.origin, "inflate": {"channels": channels, "how": how}},
    )


def with_statistics(
    network: Network, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Network:
    """The same with these means and standard deviations of its channels, of values in 0..1."""
    channels = network.spec.channels
    for name, values in (("--mean", mean), ("--std", std)):
        if values is None or len(values) != channels:
            raise ValueError(f"{name} needs {channels} values in 0..1, one per channel.")
    own = dataclasses.replace(
        network.preprocessing, normalize="fixed", mean=tuple(mean or ()), std=tuple(std or ())
    )
    return dataclasses.replace(network, preprocessing=own)

"""A frozen backbone with the parameters that are evaluated: a function of images to features."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax.data.example import Source
from dinojax.distributed import process_group
from dinojax.eval import features
from dinojax.eval.cache import FeatureCache
from dinojax.eval.features import Embed, EvalTransform
from dinojax.models.convnext import ConvNext
from dinojax.models.vit import Vit
from dinojax.sharding import batch, mesh
from dinojax.sharding.mesh import Layout

# What `Embed` gives; "mean" is that of the patches.
PLAIN = ("cls", "mean", "patches")
NAME = re.compile(r"(cls|mean|patches|registers)(?:@(-?\d+))?(:raw)?")
# (backbone parameters, images [B, H, W, C]) -> {name: array}
Forward = Callable[[dict, Any], dict[str, jax.Array]]


@dataclasses.dataclass
class Network:
    """Parameters of a backbone, and its compiled forward passes."""

    embed: Embed
    params: dict
    forward: Callable[[tuple[str, ...]], Forward] | None = None  # names of outputs -> a pass
    words: dict | None = None  # of a text stage: parameters of all beside the backbone
    cache: FeatureCache | None = None  # on disk
    _found: dict = dataclasses.field(default_factory=dict)  # what was extracted, by what it is of

    def __call__(self, images_BHWC):
        """(cls [B, D], mean of the patches [B, D], patches [B, P, D]), float32, on the devices.

        images_BHWC: normalised; of one shape throughout, for each shape is compiled.
        """
        return self.embed(self.params, images_BHWC)

    def outputs(self, images_BHWC, names: Sequence[str]) -> dict[str, jax.Array]:
        """{name: float32 array} of cls [B, D], mean [B, D], patches [B, P, D], registers [B, R, D].

        A name may say after which block (or stage), from 0 or, below 0, from the end, and that the
        final norm is left out: "cls@-4", "patches@11:raw". Raises ValueError for a name or a block
        that is not there.
        """
        if set(names) <= set(PLAIN):  # the program that is compiled anyway
            found = dict(zip(PLAIN, self(images_BHWC), strict=True))
            return {name: found[name] for name in names}
        if self.forward is None:
            raise ValueError(f"{', '.join(names)}: this network gives {', '.join(PLAIN)} alone.")
        return self.forward(tuple(names))(self.params, images_BHWC)

    def extract(
        self,
        source: Source,
        transform: EvalTransform,
        names: Sequence[str] = ("cls", "mean"),
        *,
        batch_size: int,
    ) -> dict[str, Any]:
        """Outputs of a whole source, in its order: {name: float32 [N, ...]}, labels, kept, bad.

        As features.extract: images that cannot be read are left out. All is held in memory of the
        host, once for all evaluations of one network that ask for the same; with a cache what was
        computed lies on disk, and is read from there.
        """
        key = (source.fingerprint, id(source), transform, tuple(names))
        how: dict[str, Any] = {"transform": transform, "batch_size": batch_size}
        if key not in self._found and self.cache is not None:
            self._found[key] = self.cache.extract(self.outputs, source, names, **how)
        elif key not in self._found:
            apply = functools.partial(self.outputs, names=tuple(names))
            self._found[key] = features.extract_outputs(apply, source, **how)
        return self._found[key]


def _unchanged(forward: Callable) -> Callable:
    return forward


def of_backbone(
    backbone: Vit | ConvNext, layout: Layout, *, wrap: Callable[[Callable], Callable] = _unchanged
) -> Callable[[dict], Network]:
    """parameters -> Network; what is compiled for one is there for all.

    wrap: put around each forward pass, a function of parameters and images.
    """
    embed = wrap(features.embed(backbone, layout))

    @functools.cache
    def forward(names: tuple[str, ...]) -> Forward:
        return wrap(forward_of(backbone, layout, names))

    return lambda params: Network(embed, params, forward)


def forward_of(backbone: Vit | ConvNext, layout: Layout, names: tuple[str, ...]) -> Forward:
    """A compiled pass that gives these outputs, in float32; B as in features.embed."""
    wanted = parsed(names, backbone.spec.depth)

    def run(params, images_BHWC):
        images_BHWC = mesh.constrain(images_BHWC, "image", None, None, None)
        found: dict[tuple[int, bool], Any] = {}
        for norm in (True, False):
            layers = sorted({layer for _, layer, normed in wanted.values() if normed == norm})
            if layers:
                passes = backbone.apply(
                    {"params": params}, images_BHWC, layers, norm=norm, method="intermediate"
                )
                found |= {(layer, norm): p for layer, p in zip(layers, passes, strict=True)}
        return {name: _output(found[part[1:]], part[0]) for name, part in wanted.items()}

    apply = process_group.together(jax.jit(run))

    def forward(params, images_BHWC):
        num = len(images_BHWC)
        fill = -num % layout.num_shards
        images_BHWC = np.pad(images_BHWC, ((0, fill), (0, 0), (0, 0), (0, 0)))
        found = apply(params, batch.from_own_rows(layout, images_BHWC))
        return {name: x[:num] for name, x in found.items()} if fill else found

    return forward


def parsed(names: Sequence[str], depth: int) -> dict[str, tuple[str, int, bool]]:
    """Name -> (kind, number of the block, whether the final norm is applied)."""
    wanted = {}
    for name in names:
        match = NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r}: give cls, mean, patches or registers, [@BLOCK][:raw].")
        layer = int(match[2] or -1)
        if not -depth <= layer < depth:
            raise ValueError(f"{name!r}: this backbone has blocks 0 to {depth - 1}.")
        wanted[name] = (match[1], layer % depth, match[3] is None)
    return wanted


def _output(found, kind: str) -> jax.Array:
    if kind == "mean":
        return jnp.mean(found.patches.astype(jnp.float32), axis=1)
    return getattr(found, kind).astype(jnp.float32)

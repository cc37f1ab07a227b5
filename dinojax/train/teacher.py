"""The frozen teacher of a distillation: which network it is, and its parameters on devices.

Of any format that `dinojax.load` reads, or a run, with the trained heads that a run or an own
export brings along. Opening looks at names and shapes alone; docs/distillation.md has the choices.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dinojax import config as configs
from dinojax.augment.spec import teacher_problems
from dinojax.checkpoint import locate
from dinojax.config import Config, ConfigError
from dinojax.models import zoo
from dinojax.models.heads import Head, HeadSpec
from dinojax.models.networks import Networks
from dinojax.models.params import abstract_params, init_params
from dinojax.models.vit import Vit, VitSpec
from dinojax.ops import rng
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout
from dinojax.weights import load as files
from dinojax.weights import meta, run
from dinojax.weights.export import from_source
from dinojax.weights.tensors import Tensors
from dinojax.weights.writers import Network

log = logging.getLogger(__name__)

HEADS = ("dino_head", "ibot_head")
# Words before a recipe's name: random weights of its networks, or of those of its `smoke`.
RANDOM = {"random": False, "smoke": True}


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Networks, and where their parameters come from: a Network, or the random ones of a recipe."""

    name: str  # as in the config
    networks: Networks
    stored: Network | None = dataclasses.field(compare=False)

    def abstract(self, layout: Layout) -> dict:
        """Shapes, dtypes and shardings of the parameters.

        Kernels of the backbone are stored in the dtype of computation, which they are rounded to
        wherever they are used; all else is float32. Raises ValueError as `mesh.check`.
        """
        return jax.tree_util.tree_map_with_path(
            self._rounded, abstract_params(self.networks, layout)
        )

    def _rounded(self, path, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        is_kernel = path[0].key == "backbone" and path[-1].key == "kernel"
        dtype = self.networks.backbone.spec.dtype if is_kernel else jnp.float32
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    def load(self, layout: Layout) -> dict:
        """The parameters on their devices. Raises ValueError if they do not fit `networks`."""
        like = self.abstract(layout)
        if self.stored is None:
            place = jax.tree.map(lambda leaf: leaf.sharding, like)
            return jax.jit(functools.partial(_random, self.networks, like), out_shardings=place)()
        found = _arrays(self.stored, self.networks)
        _check_shapes(found, like, self.name)
        return jax.tree.map(_put, found, like)

    def load_prototypes(self, layout: Layout) -> dict:
        """The same of what a student needs, on its own devices alone."""
        like = prototypes(self.abstract(layout))
        if self.stored is None:
            place = jax.tree.map(lambda leaf: leaf.sharding, like)
            make = functools.partial(_random, self.networks, self.abstract(layout))
            return jax.jit(lambda: prototypes(make()), out_shardings=place)()
        kept = {name: _part(self.stored.heads, name) for name in like}
        found = {
            name: meta.to_ours({n: t.read() for n, t in own.items()}) for name, own in kept.items()
        }
        return jax.tree.map(_put, prototypes(found), like)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names and float32 values of all parameters; of random ones the name and the
        stream they are drawn from."""
        if self.stored is None:
            return hashlib.sha256(f"{self.name} {rng.INIT}".encode()).hexdigest()
        named = {**self.stored.tensors, **_heads_of(self.stored, self.networks)}
        digests = {  # in their own order, in which each is read once
            name: hashlib.sha256(np.ascontiguousarray(tensor.read().astype(np.float32)).data)
            for name, tensor in named.items()
        }
        told = {name: digests[name].hexdigest() for name in sorted(digests)}
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def prototypes(params: dict) -> dict:
    """The part of a teacher's parameters that a student needs: what makes logits."""
    return {head: {"prototypes": params[head]["prototypes"]} for head in HEADS if head in params}


def open_teacher(config: Config) -> Teacher:
    """The teacher that section `distill` names; no tensor is read.

    Raises ConfigError for one that cannot teach this config's student, with all that is wrong.
    """
    section = config.distill
    dtype = jnp.dtype(section.compute or config.precision.compute)
    if not section.teacher:
        raise ConfigError(
            "distill.enabled=True but distill.teacher is empty; set it to a run, to "
            "RUN/checkpoints/STAGE[/STEP], or to a file or folder of weights (random:RECIPE, for "
            "plans and tests, is a recipe's networks with random weights)."
        )
    word, _, recipe = section.teacher.partition(":")
    if word in RANDOM:
        stored, own = None, configs.load(recipe, smoke=RANDOM[word])
        spec: Any = zoo.vit_spec(
            own.model, own.rope, channels=own.image.channels, attention="plain", dtype=dtype
        )
        heads: dict[str, Head | None] = {
            name: _head(getattr(own, name), spec, dtype) for name in HEADS
        }
        normalized: Any = own.image
    else:
        stored = _open(section.teacher)
        spec = stored.spec
        heads = _stored_heads(stored, dtype)
        normalized = stored.preprocessing
    faults = _faults(config, spec, heads, normalized)
    if faults:
        raise ConfigError(
            "\n  ".join([f"distill.teacher={section.teacher} cannot teach:", *faults])
        )
    if section.targets == "features":
        heads = dict.fromkeys(HEADS)
    networks = Networks(Vit(_running(spec, dtype)), heads["dino_head"], heads["ibot_head"])
    return Teacher(section.teacher, networks, stored)


def _open(path: str) -> Network:
    place = locate.find(path, "distill.teacher")
    if place.step is None:
        source = files.open_source(place.path)
        found = from_source(source, overrides={})
        return dataclasses.replace(
            found, origin={**found.origin, "config": (source.provenance or {}).get("config")}
        )
    run_dir, stage = place.path.parent.parent, place.path.name
    return run.network_of_run(run_dir, step=place.step, stage=stage)


def _running(spec: VitSpec, dtype) -> VitSpec:
    """The spec with nothing random in it: a teacher only looks."""
    still = dataclasses.replace(spec.rope, shift=None, jitter=None, rescale=None)
    dtypes = {"dtype": dtype, "reduce": dtype}  # nothing is summed over devices
    return dataclasses.replace(spec, drop_path=0.0, remat="none", rope=still, **dtypes)


def _head(section, spec: VitSpec, dtype) -> Head:
    return Head(zoo.head_spec(section, inputs=spec.width, dtype=dtype, reduce=dtype))


def _stored_heads(stored: Network, dtype) -> dict[str, Head | None]:
    """The heads that come with the weights; None where one is missing."""
    config = stored.origin.get("config") or {}
    found: dict[str, Head | None] = {}
    for name in HEADS:
        own = _part(stored.heads, name)
        layers = [t.shape for n, t in own.items() if n.startswith("mlp.") and n.endswith("weight")]
        norm = config.get(name, {}).get("prototype_norm", "none")
        last = next(
            (own[n] for n in ("last_layer.weight", "last_layer.weight_v") if n in own), None
        )
        if last is None or not layers:
            found[name] = None
            continue
        spec = HeadSpec(
            inputs=stored.spec.width,
            num_layers=len(layers),
            hidden=layers[0][0],
            bottleneck=last.shape[1],
            prototypes=last.shape[0],
            bias=any(n.startswith("mlp.") and n.endswith("bias") for n in own),
            prototype_norm="weight_norm" if "last_layer.weight_g" in own else norm,
            dtype=dtype,
            reduce=dtype,
        )
        found[name] = Head(spec)
    return found


def _part(tensors: Tensors, part: str) -> Tensors:
    prefix = f"{part}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _heads_of(stored: Network, networks: Networks) -> Tensors:
    """Tensors of the heads that are used."""
    used = [name for name in HEADS if getattr(networks, name) is not None]
    return {n: t for n, t in stored.heads.items() if n.split(".")[0] in used}


def _faults(config: Config, spec: Any, heads: dict, normalized: Any) -> list[str]:
    """In words, what keeps a network from teaching this config's student."""
    if not isinstance(spec, VitSpec):
        return ["it is a ConvNeXt, which has no patches of its own; give a ViT."]
    faults = teacher_problems(config.crops, config.model.patch_size, spec.patch_size)
    if (own := config.image.channels) != (theirs := spec.channels):
        faults.append(
            f"image.channels={own}, but the teacher has {theirs}; set image.channels={theirs}."
        )
    pixels = ("normalize", *(("mean", "std") if normalized.normalize == "fixed" else ()))
    for key in pixels:
        ours, known = getattr(config.image, key), getattr(normalized, key)
        if known is not None and ours != known:
            faults.append(f"image.{key}={ours}, but the teacher knows {known}; set that.")
    if config.distill.targets == "features":
        return faults
    if missing := [name for name in HEADS if heads[name] is None]:
        faults.append(
            f"it comes without {' and '.join(missing)}, and targets are made by trained heads. "
            "Give a run or an export made with --with-heads, or choose distill.targets=features: "
            "the student's features, through projectors, are drawn to the teacher's."
        )
    for name in HEADS:
        own, head = getattr(config, name).prototypes, heads[name]
        if head is not None and head.spec.prototypes != own:
            theirs = head.spec.prototypes
            faults.append(
                f"{name}.prototypes={own}, but the teacher's targets are over {theirs:,}; set "
                f"{name}.prototypes={theirs}."
            )
    return faults


def _arrays(stored: Network, networks: Networks) -> dict:
    """The tree of parameters on this host."""
    used = [name for name in HEADS if getattr(networks, name) is not None]
    parts = {"backbone": stored.tensors, **{name: _part(stored.heads, name) for name in used}}
    spec = networks.backbone.spec
    assert isinstance(spec, VitSpec)
    heads = spec.num_heads
    return {
        name: meta.to_ours({n: t.read() for n, t in tensors.items()}, num_heads=heads)
        for name, tensors in parts.items()
    }


def _check_shapes(found: dict, like: dict, name: str) -> None:
    shapes = [
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (found, like)
    ]
    wrong = sorted(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
    if wrong:
        told = [f"{n}: {shapes[0].get(n)} there, {shapes[1].get(n)} expected" for n in wrong[:5]]
        raise ValueError("\n  ".join([f"{name} holds other parameters than its network:", *told]))


def _put(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """Every process gives its devices their parts of an array that all of them have."""
    rounded = np.asarray(array).astype(like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: rounded[part])


def _random(networks: Networks, like: dict) -> dict:
    with mesh.off():
        params = nn.meta.unbox(init_params(networks, jax.random.key(0)))
    return jax.tree.map(lambda x, y: x.astype(y.dtype), params, like)

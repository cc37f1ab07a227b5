"""What a stage starts from: weights of the stage before, of another run or of a file; its anchor.

Everything is read from disk, also what this process has just trained, so that a run that was
stopped between two stages goes on exactly like one that was not.
"""

import contextlib
import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import config as configs
from dinojax.checkpoint import checksum
from dinojax.checkpoint.locate import Place, find
from dinojax.checkpoint.manager import Checkpoints
from dinojax.config import Config, ConfigError, stages
from dinojax.models import zoo
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.vit import VitSpec
from dinojax.models.zoo import Spec
from dinojax.runs import early_stopping
from dinojax.runs.directory import last_step, stage_before
from dinojax.runs.finished import rows_of
from dinojax.train import text_program, text_start
from dinojax.train.program import Program
from dinojax.train.state import State
from dinojax.weights import load as files
from dinojax.weights import run

log = logging.getLogger(__name__)

# Fields of a backbone that change what it computes from the same weights -> keys that set them.
MEANING: dict[type, dict[str, str]] = {
    VitSpec: {
        **{
            name: f"model.{name}"
            for name in ("width", "depth", "num_heads", "ffn", "patch_size", "num_registers")
            + ("norm", "position", "position_size", "mask_k_bias")
        },
        "channels": "image.channels",
    },
    ConvNextSpec: {
        "depths": "model.depth",
        "widths": "model.width",
        "channels": "image.channels",
    },
}
ROPE = ("base", "min_period", "max_period", "coords")


def first_state(built: Program, config: Config, run_dir: Path) -> State:
    """The state before the first step of a stage: its source handed over, its anchor in place."""
    state = built.new_state()
    place = _source(config, run_dir)
    if place is not None:
        log.info("stage %s starts from %s", config.stage, place)
        what, heads = config.start.what, config.start.heads
        widen = config.start.channels == "expand"
        state = _hand_over(state, place, what=what, heads=heads, widen=widen)
        if what != "state":  # an optimizer may hold on to the weights it began with
            place_of = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
            init = jax.jit(built.step.optimizer.init, out_shardings=place_of)
            state = dataclasses.replace(state, opt_state=init(state.student))
    if config.text.enabled:
        state = text_start.with_tower(state, config)
    if state.gram is not None:
        place = _anchor(config, run_dir)
        log.info("gram anchor: %s", "the ema of step 0" if place is None else place)
        gram = _copied(state.ema["backbone"])
        if place is not None:
            gram = _backbone(place, like=state.gram)
        state = dataclasses.replace(state, gram=gram)
    return state


def check(config: Config, run_dir: Path, *, began: bool) -> None:
    """Raise ConfigError or FileNotFoundError for sources that a stage cannot start from.

    Before any device work, so that a mistake in a later stage does not cost the earlier ones.
    began: the stage has a checkpoint of its own; then its sources may be gone.
    """
    if config.text.enabled:
        text_program.keep_vocabulary(config, run_dir)
    named = {"start.source": _text(config.start.source), "gram.anchor": ""}
    what, heads = config.start.what, config.start.heads
    if config.gram.enabled and config.gram.teacher == "frozen":
        anchor = config.gram.anchor
        named["gram.anchor"] = "" if anchor == stages.EMA or stages.in_run(anchor) else anchor
    for key, path in named.items():
        if not path or began:
            continue
        place = find(path, key)
        if place.step is None:
            needs_new = not config.text.enabled and (what, heads) != ("ema", "new")
            if key == "start.source" and needs_new:
                raise ConfigError(
                    f"start.source={path} is a file of weights and holds a backbone alone, but "
                    f"start.what={what!r}, start.heads={heads!r}; set start.what='ema' and "
                    "start.heads='new', or start from a run. If it is meant for another stage "
                    "alone, say --set STAGE:start.source=FILE."
                )
            _refuse_other_network(config, path, key)


def refresh(layout_of: State):
    """A compiled `state -> state` whose gram network is a copy of the ema, all else untouched."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, layout_of.gram)
    copy = jax.jit(functools.partial(jax.tree.map, jnp.copy), out_shardings=shardings)
    compiled = copy.lower(layout_of.ema["backbone"]).compile()

    def renewed(state: State) -> State:
        return dataclasses.replace(state, gram=compiled(state.ema["backbone"]))

    return renewed


def _hand_over(state: State, place: Place, *, what: str, heads: str, widen: bool = False) -> State:
    """The new state with weights of another; step, key and gram network stay its own."""
    is_text = "backbone" not in state.student  # only the backbone goes on, and stays
    if place.step is None or heads == "new" or (is_text and what == "ema"):
        backbone = _backbone(place, like=state.ema["backbone"], widen=widen)
        ema = {**state.ema, "backbone": backbone}
        own = {} if is_text else {"backbone": _copied(backbone)}
        student = {**state.student, **own}
        return dataclasses.replace(state, student=student, ema=ema)
    if what == "ema":
        ema = _restored(place, {"ema": state.ema})["ema"]
        return dataclasses.replace(state, student={**state.student, **_copied(ema)}, ema=ema)
    names = ("student", "ema", "opt_state") + (("centers",) if state.centers else ())
    parts = _restored(place, {name: getattr(state, name) for name in names})
    return dataclasses.replace(state, **parts)


def _copied(tree):
    """Arrays of their own: a step gives up the memory of all it is given, each once."""
    return jax.tree.map(jnp.copy, tree)


def _backbone(place: Place, *, like, widen: bool = False) -> dict:
    """Parameters of the ema's backbone at a place, where `like` has its own.

    widen: a file's patch embedding may have fewer channels, see `expand_channels`.
    """
    if place.step is not None:
        return _restored(place, {"ema": {"backbone": like}})["ema"]["backbone"]
    found = run.load(place.path).params
    if widen and "patch_embed" in found:
        channels = like["patch_embed"]["kernel"].shape[2]
        kernel = expand_channels(np.asarray(found["patch_embed"]["kernel"]), channels)
        found = {**found, "patch_embed": {**found["patch_embed"], "kernel": kernel}}
    if lines := checksum.differences(checksum.shapes(found), checksum.shapes(like)):
        raise ValueError(
            "\n  ".join([f"{place.path} holds another backbone than model.*:", *lines])
        )
    return jax.tree.map(_put, found, like)


def expand_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A patch embedding [p, p, C, D] for more channels: each new one is the mean of the old ones.

    All are then scaled by old / new, so that an image of equal channels gives what it gave
    (arXiv:2606.05107). Raises ValueError for fewer channels than there are.
    """
    old = kernel.shape[2]
    if channels < old:
        raise ValueError(
            f"image.channels={channels}, but the weights have {old} channels, and none is dropped; "
            f"use {old} or more."
        )
    mean = np.mean(kernel, axis=2, keepdims=True)
    wide = np.concatenate([kernel, np.repeat(mean, channels - old, axis=2)], axis=2)
    return wide * (old / channels)


def _put(x: Any, like: jax.Array) -> jax.Array:
    """Every process gives its devices their parts of an array that all of them have."""
    rounded = np.asarray(x.astype(like.dtype))
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: rounded[part])


def _restored(place: Place, like: dict[str, Any]) -> dict[str, Any]:
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    with contextlib.closing(Checkpoints.reader(place.path)) as checkpoints:
        return checkpoints.restore_parts(shapes, place.step)


def _source(config: Config, run_dir: Path) -> Place | None:
    source = config.start.source
    if path := _text(source):
        return find(path, "start.source")
    before = stage_before(run_dir, config.stage) if source == stages.PREVIOUS else None
    if before is None:
        return None
    earlier = configs.read(run_dir, stage=before)
    last = last_step(run_dir, earlier)
    if last is None:
        raise ConfigError(
            f"stage {config.stage} starts from stage {before}, which has not finished in "
            f"{run_dir}; run it first: the same command without --stage does."
        )
    if objection := early_stopping.objection(earlier.values(), rows_of(run_dir, before)):
        raise ConfigError(objection)
    return Place(run_dir / "checkpoints" / before, last)


def _anchor(config: Config, run_dir: Path) -> Place | None:
    """None: the ema of this stage."""
    anchor = config.gram.anchor
    if anchor == stages.EMA:
        return None
    own = stages.in_run(anchor)
    if own is not None and not Path(anchor).exists():
        return Place(run_dir / "checkpoints" / own[0], own[1])
    return find(anchor, "gram.anchor")


def _text(source: str) -> str:
    """The path that a source is, empty for the words."""
    return "" if source in (stages.PREVIOUS, stages.NOTHING) else source


def _refuse_other_network(config: Config, path: str, key: str) -> None:
    """Raise ConfigError where the file's network is not the config's, field by field."""
    theirs = files.resolve(files.open_source(path), overrides={})[1]
    ours = own_spec(config)
    if type(theirs) is not type(ours):
        held = "a ViT" if isinstance(theirs, VitSpec) else "a ConvNeXt"
        raise ConfigError(
            f"{key}={path} holds {held}, but model.name={config.model.name!r} is none; set "
            "model.name to the network of the file, or give a file of this one."
        )
    named = dict(MEANING[type(ours)])
    if getattr(ours, "position", None) != "learned":
        named.pop("position_size", None)
    pairs = [(key, *_both(theirs, ours, name)) for name, key in named.items()]
    if isinstance(ours, VitSpec) and isinstance(theirs, VitSpec):
        if ours.position == theirs.position == "rope":
            pairs += [(f"rope.{name}", *_both(theirs.rope, ours.rope, name)) for name in ROPE]
    if config.start.channels == "expand":
        pairs = [pair for pair in pairs if pair[0] != "image.channels"]
    lines = [f"  {name}: {a!r} there, {b!r} here" for name, a, b in pairs if a != b]
    if lines:
        move = "Set these keys to what the file has."
        if isinstance(ours, ConvNextSpec):
            move = "Set model.name, model.width and model.depth to what makes these of them."
        raise ConfigError("\n".join([f"{key}={path} holds another network:", *lines, move]))


def own_spec(config: Config) -> Spec:
    """What a file must hold for a stage to start from it."""
    return zoo.backbone(
        config.model,
        config.rope,
        channels=config.image.channels,
        attention="plain",
        dtype=jnp.dtype(jnp.float32),
    ).spec


def _both(theirs: Any, ours: Any, name: str) -> tuple[Any, Any]:
    return getattr(theirs, name), getattr(ours, name)

"""From a config with `text.enabled` to a compiled step: the text side of program.py."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

from dinojax.augment.single import CropSpec
from dinojax.config import Config, ConfigError
from dinojax.data import captions
from dinojax.data.example import Source
from dinojax.data.sources import open_captioned
from dinojax.distributed import process_group
from dinojax.eval.text_model import VOCABULARY
from dinojax.ops import attention
from dinojax.text import build, vocabulary
from dinojax.text.tokenizer import Tokenizer
from dinojax.train import optim
from dinojax.train.text_objective import TextObjective
from dinojax.train.text_step import TextStep

log = logging.getLogger(__name__)


def open_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of a text stage; None for any other. Errors as of `vocabulary.read`."""
    if not config.text.enabled:
        return None
    return Tokenizer(vocabulary.read(config.text.vocabulary), config.text.context)


def num_ids(config: Config) -> int:
    """Of the vocabulary of a text stage."""
    return vocabulary.size(config.text.vocabulary)


def open_pairs(config: Config) -> Source:
    """The images and captions of a text stage; what is wrong with captions is said or raised."""
    tokenizer = open_tokenizer(config)
    assert tokenizer is not None
    source = open_captioned(config.data, channels=config.image.channels)
    for note in captions.check(source, tokenizer.encode, config.text.context):
        log.warning("captions: %s", note)
    return source


def caption_reader(config: Config, seed: int) -> captions.CaptionReader | None:
    """What the loader makes ids with; None where there is no text."""
    tokenizer = open_tokenizer(config)
    return None if tokenizer is None else captions.CaptionReader(tokenizer, seed)


def keep_vocabulary(config: Config, directory: Path) -> None:
    """Write the vocabulary into the run directory, once and by one process.

    Raises ConfigError where there is another: ids would have other meanings than those learned.
    """
    place, own = directory / VOCABULARY, vocabulary.read(config.text.vocabulary)
    if not place.exists():
        if process_group.current().is_main:
            own.write(place)
    elif vocabulary.read(str(place)).merges != own.merges:
        raise ConfigError(
            f"text.vocabulary={config.text.vocabulary} is not the one this run began with, which "
            f"is {place}; name that, or start another --run."
        )


def build_step(config: Config, *, images_per_step: int, num_ids: int) -> TextStep:
    """Networks, loss and optimizer. images_per_step: those one device works on at once.

    num_ids: of the vocabulary.
    """
    section = config.text
    objective = TextObjective(
        networks=build.networks(
            config, num_ids=num_ids, attention=_attention(config, images_per_step)
        ),
        frozen=("backbone", *(("text_tower",) if section.freeze_tower else ())),
        scale=section.scale,
        max_scale=section.max_scale,
        gram=section.gram,
        group_size=config.group_size,
        bias=section.bias if section.loss == "sigmoid" else None,
    )
    crops = CropSpec.from_sections(
        image=config.image,
        crops=config.crops,
        augment=config.augment,
        patch_size=config.model.patch_size,
        group_size=config.group_size,
    )
    student = jax.eval_shape(lambda: nn.meta.unbox(objective.init(jax.random.key(0))[0]))
    optimizer = optim.build(config.optim, multipliers=optim.text_multipliers(student))
    trained = sum(leaf.size for leaf in jax.tree.leaves(student))
    log.info("text alignment: %s parameters train", f"{trained:,}")
    return TextStep(objective, optimizer, crops, config.accumulate)


def _attention(config: Config, images: int) -> build.Attention:
    """Chooses the attention that works on the shapes of this stage, with reasons in the log."""

    def choose(sizes: tuple[int, int, int], causal: bool) -> str:
        shapes, dtype = [(images, *sizes)], jnp.dtype(config.precision.compute)
        name = config.model.attention
        found = attention.choose(name, shapes=shapes, dtype=dtype, causal=causal)
        for reason in found.reasons:
            log.info("%s", reason)
        return found.implementation

    return choose

"""Images and words in one space, ready to be called: from a run, or from released files."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import config as configs
from dinojax.checkpoint.locate import is_run
from dinojax.checkpoint.manager import Checkpoints
from dinojax.config import Config, ConfigError
from dinojax.data import fields
from dinojax.models import zoo
from dinojax.models.layers import l2_normalize
from dinojax.models.text_networks import TextNetworks
from dinojax.models.text_tower import TextHead, TextSpec, TextTower
from dinojax.models.vision_head import ImageFeatures, VisionHead, VisionHeadSpec
from dinojax.text import build, vocabulary
from dinojax.text.tokenizer import Tokenizer
from dinojax.weights import dinotxt as released
from dinojax.weights import folders, jsons, run
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.tensors import Tensors, open_tensors

VOCABULARY = "vocabulary.txt"  # in a run directory, and beside exported weights
BATCH = 64  # texts of one forward pass


@dataclasses.dataclass(frozen=True)
class TextModel:
    """Networks, their parameters, and what makes their inputs of words and pixels."""

    networks: TextNetworks
    params: dict[str, Any]
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    origin: str

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [N, E]; texts go through in batches of one size."""
        ids_NT = self.tokenizer(texts)
        found = [np.zeros((0, self.networks.text_tower.spec.outputs), np.float32)]
        for first in range(0, len(ids_NT), BATCH):
            part_BT = ids_NT[first : first + BATCH]
            filled_BT = np.pad(part_BT, ((0, BATCH - len(part_BT)), (0, 0)))
            found.append(np.asarray(_texts(self.networks, self.params, filled_BT))[: len(part_BT)])
        return np.concatenate(found)

    def images(self, images_BHWC) -> ImageFeatures:
        """Of normalised images; nothing has unit length."""
        return _images(self.networks, self.params, jnp.asarray(images_BHWC))

    def patches(self, images_BHWC, *, of: str = "head") -> jax.Array:
        """[B, rows, columns, E]: patches of the vision head, or `of="backbone"`."""
        rows, columns = self.networks.backbone.spec.grid(*images_BHWC.shape[1:3])
        function = {"head": _head_patches, "backbone": _backbone_patches}[of]
        found = function(self.networks, self.params, jnp.asarray(images_BHWC))
        return found.reshape(len(images_BHWC), rows, columns, -1)


@functools.partial(jax.jit, static_argnums=0)
def _texts(networks: TextNetworks, params, ids_BN):
    return l2_normalize(networks.text(params, ids_BN))


@functools.partial(jax.jit, static_argnums=0)
def _images(networks: TextNetworks, params, images_BHWC):
    return networks.image(params, images_BHWC)


@functools.partial(jax.jit, static_argnums=0)
def _head_patches(networks: TextNetworks, params, images_BHWC):
    return networks.image(params, images_BHWC).patches


@functools.partial(jax.jit, static_argnums=0)
def _backbone_patches(networks: TextNetworks, params, images_BHWC):
    return networks.backbone_tokens(params, images_BHWC)[1]


def load(
    path: str | Path,
    *,
    backbone: str | Path | None = None,
    words: str | None = None,
    stage: str | None = None,
    step: int | None = None,
) -> TextModel:
    """A model from a run with a text stage, or from released files of dino.txt.

    backbone: of released files without one, a file, folder or run. words: a vocabulary, as
    text.vocabulary; None = the run's, for files that beside them, or CLIP's. stage, step: of a run,
    None = the one it is at and the last. Raises ConfigError for a run without a text stage,
    ValueError for files that are not, in every tensor, such a model, and FileNotFoundError.
    """
    if is_run(path):
        return _of_run(Path(path), words, stage, step)
    file, tensors = open_released(path)
    tokenizer_words = words or _beside(file) or vocabulary.CLIP
    vision, text = released.specs_of({name: tensor.shape for name, tensor in tensors.items()})
    vision, text, patch_layer = _as_told(file, vision, text)
    trained = {n: t for n, t in tensors.items() if not n.startswith(released.BACKBONE)}
    params, _ = released.read(trained, vision, text, source=str(path))
    if len(trained) < len(tensors):
        found = run.load(file, prefix=released.BACKBONE)
    elif backbone is None:
        raise ValueError(
            f"{path} holds the two sides alone, and no backbone; name the one they were trained "
            "on: --backbone PATH."
        )
    else:
        found = run.load(backbone)
    if found.spec.width != vision.width:
        raise ValueError(
            f"the backbone has {found.spec.width} channels and the vision head of {path} takes "
            f"{vision.width}; give the one it was trained on."
        )
    tokenizer = Tokenizer(vocabulary.read(tokenizer_words), text.context)
    _check_ids(tokenizer, text.vocabulary, str(path))
    sides = VisionHead(vision), TextTower(text), TextHead(text)
    networks = TextNetworks(zoo.module(found.spec), *sides, patch_layer=patch_layer)
    whole = {**params, "backbone": found.params}
    return TextModel(networks, whole, tokenizer, found.preprocessing, str(path))


# Field -> key of the section "text" of config.json, for what no tensor tells.
VISION_FIELDS = {"num_heads": "vision_heads", "pool": "vision_pool"}
TEXT_FIELDS = {"num_heads": "num_heads", "pool": "pool"}


def told(networks: TextNetworks) -> dict[str, Any]:
    """What no tensor tells of networks, as JSON values for a file beside them."""
    vision, text = networks.vision_head.spec, networks.text_tower.spec
    found: dict[str, Any] = {"patch_layer": networks.patch_layer}
    found |= {key: getattr(vision, field) for field, key in VISION_FIELDS.items()}
    return found | {key: getattr(text, field) for field, key in TEXT_FIELDS.items()}


def _as_told(file: Path, vision: VisionHeadSpec, text: TextSpec):
    """The specs, and the layer of patches, as config.json beside a file says; else as they are."""
    content = jsons.read_if_there(file.parent / "config.json") or {}
    own = fields.field(content, "text", dict, where=file.parent / "config.json", default={})

    def value(key: str, default: Any) -> Any:
        where = f"{file.parent / 'config.json'}: text"
        return fields.field(own, key, type(default), where=where, default=default)

    spec_v = {field: value(key, getattr(vision, field)) for field, key in VISION_FIELDS.items()}
    spec_t = {field: value(key, getattr(text, field)) for field, key in TEXT_FIELDS.items()}
    pair = dataclasses.replace(vision, **spec_v), dataclasses.replace(text, **spec_t)
    return *pair, value("patch_layer", 1)


def is_released(path: str | Path) -> bool:
    """Whether a file or folder holds weights of dino.txt, by the names of its tensors.

    Anything else, also what cannot be read, is for others to judge.
    """
    try:
        open_released(path)
    except (ValueError, OSError):
        return False
    return True


def open_released(path: str | Path) -> tuple[Path, Tensors]:
    """(file, tensors) of a file or folder of dino.txt; nothing is read.

    Raises ValueError for other weights.
    """
    file = Path(path)
    file = folders.weights_file(file) if file.is_dir() else file
    tensors = open_tensors(file)
    if not released.is_released(tensors):
        raise ValueError(
            f"{path} holds no weights of dino.txt: none of its {len(tensors)} names begins with "
            "visual_model. or text_model."
        )
    return file, tensors


def params_of_run(
    directory: Path, config: Config, step: int | None, *, parts: Sequence[str] = ()
) -> tuple[dict[str, Any], int]:
    """(parts of a checkpoint of a text stage as arrays of this host, its step).

    parts: names of networks.PARTS, () = all. Raises ConfigError for another stage.
    """
    if not config.text.enabled:
        raise ConfigError(
            f"stage {config.stage} of {directory} aligns no text (text.enabled=False); name the "
            "one that does: --stage NAME."
        )
    folder = directory / "checkpoints" / config.stage
    with contextlib.closing(Checkpoints.reader(folder)) as checkpoints:
        number = checkpoints.restore_meta(step)["step"]
        found: dict[str, Any] = {}
        for group in ("student", "ema"):
            for part, shapes in checkpoints.shapes(group, number).items():
                if not parts or part in parts:
                    found[part] = _read(checkpoints, (group, part), shapes, number)
    return found, number


def _read(checkpoints: Checkpoints, place: tuple[str, ...], shapes, step: int):
    def leaf(path, like):
        keys = tuple(entry.key for entry in path)
        return jnp.asarray(checkpoints.read_leaf((*place, *keys), like, step))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _of_run(directory: Path, words: str | None, stage: str | None, step: int | None) -> TextModel:
    config = configs.read(directory, stage=stage)
    params, number = params_of_run(directory, config, step)
    own = str(directory / VOCABULARY) if (directory / VOCABULARY).exists() else None
    name = words or own or config.text.vocabulary
    tokenizer = Tokenizer(vocabulary.read(name), config.text.context)
    num_ids = params["text_tower"]["tokens"].shape[0]
    _check_ids(tokenizer, num_ids, str(directory))
    networks = build.networks(config, num_ids=num_ids)
    origin = f"{directory}, step {number}"
    return TextModel(networks, params, tokenizer, run.preprocessing_of(config), origin)


def _check_ids(tokenizer: Tokenizer, num_ids: int, source: str) -> None:
    if len(tokenizer.vocabulary) != num_ids:
        raise ValueError(
            f"{source} has {num_ids:,} tokens and the vocabulary {tokenizer.vocabulary.name} "
            f"{len(tokenizer.vocabulary):,}; give the one it was trained with."
        )


def _beside(file: Path) -> str | None:
    place = file.parent / VOCABULARY
    return str(place) if place.exists() else None

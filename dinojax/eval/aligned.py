"""What the evaluations of a text stage share: its networks, words and pixels in one space."""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinojax.config import ConfigError
from dinojax.data.example import Source
from dinojax.distributed import process_group
from dinojax.eval import features
from dinojax.eval.contract import Setting
from dinojax.eval.features import EvalTransform
from dinojax.eval.network import Network
from dinojax.eval.text_model import VOCABULARY
from dinojax.models.text_networks import TextNetworks
from dinojax.sharding import mesh
from dinojax.text import build, vocabulary
from dinojax.text.tokenizer import Tokenizer

BATCH = 64  # texts of one pass
IMAGENET = "imagenet"  # names and templates that open_clip_torch ships
OF_PACKAGE = {"classes": "IMAGENET_CLASSNAMES", "templates": "OPENAI_IMAGENET_TEMPLATES"}


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The networks of a text stage, without parameters, and its tokenizer."""

    networks: TextNetworks
    tokenizer: Tokenizer

    def texts(self, network: Network, texts: Sequence[str]) -> np.ndarray:
        """Vectors [N, E], float32, not of unit length."""
        ids_NT, found = self.tokenizer(texts), []
        params = self._params(network)
        for first in range(0, len(ids_NT), BATCH):
            part_BT = ids_NT[first : first + BATCH]
            filled_BT = np.pad(part_BT, ((0, BATCH - len(part_BT)), (0, 0)))
            vectors_BE = process_group.fetch(_texts(self.networks, params, filled_BT))
            found.append(vectors_BE[: len(part_BT)].astype(np.float32))
        return np.concatenate(found)

    def images(
        self, network: Network, source: Source, transform: EvalTransform, *, batch_size: int
    ) -> dict[str, Any]:
        """{"pooled": [N, E], "labels", "kept", "bad"} of a whole source, as features.extract."""
        params = self._params(network)

        def apply(images_BHWC):
            return {"pooled": _pooled(self.networks, params, images_BHWC)}

        return features.extract_outputs(
            apply, source, transform=transform, batch_size=batch_size, shared=False
        )

    def patches(self, network: Network, images_BHWC, *, of: str) -> jax.Array:
        """[B, rows, columns, E] of the vision head, or of the backbone."""
        rows, columns = self.networks.backbone.spec.grid(*images_BHWC.shape[1:3])
        found = _patches(self.networks, of, self._params(network), images_BHWC)
        return found.reshape(len(images_BHWC), rows, columns, -1)

    def _params(self, network: Network) -> dict:
        if network.words is None:
            raise ConfigError("this network aligns no text; name a run and stage of text.enabled.")
        return {**network.words, "backbone": network.params}


def open_aligned(setting: Setting) -> Aligned | None:
    """Of a run's text stage, or of weights; None for a stage and for weights without text."""
    if setting.text is not None:
        return Aligned(setting.text.networks, setting.text.tokenizer)
    config = setting.config
    if not config.text.enabled:
        return None
    own = None if setting.directory is None else setting.directory / VOCABULARY
    name = str(own) if own is not None and own.exists() else config.text.vocabulary
    words = vocabulary.read(name)
    networks = build.networks(config, num_ids=len(words))
    return Aligned(networks, Tokenizer(words, config.text.context))


def lines(value: str, key: str) -> list[str]:
    """Names or templates: of a file, one a line; of ImageNet; or the value itself.

    key: classes or templates, which tells what ImageNet's are. Raises FileNotFoundError and
    ModuleNotFoundError, and ValueError for a file without lines.
    """
    if value == IMAGENET:
        return _of_package(OF_PACKAGE[key])
    path = Path(value).expanduser()
    if "{}" in value and not path.exists():
        return [value]
    found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in found if line]
    if not found:
        raise ValueError(f"{value} holds no {key}; give one a line.")
    return found


def _of_package(name: str) -> list[str]:
    """A table of open_clip's file of class names, which imports none of its models."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "ImageNet's names and templates are read from open_clip_torch; run: pip install "
            "'dinojax[clip]', or give a file with one a line."
        )
    path = Path(spec.origin).parent / "zero_shot_metadata.py"
    own = importlib.util.spec_from_file_location("zero_shot_metadata", path)
    assert own is not None and own.loader is not None
    module = importlib.util.module_from_spec(own)
    own.loader.exec_module(module)
    return [entry("{}") if callable(entry) else entry for entry in getattr(module, name)]


@functools.partial(jax.jit, static_argnums=0)
def _texts(networks: TextNetworks, params, ids_BN):
    with mesh.off():  # texts of one size, whole on every device
        return networks.text(params, ids_BN)


@functools.partial(jax.jit, static_argnums=0)
def _pooled(networks: TextNetworks, params, images_BHWC):
    with mesh.off():
        return networks.image(params, images_BHWC).pooled


@functools.partial(jax.jit, static_argnums=(0, 1))
def _patches(networks: TextNetworks, of: str, params, images_BHWC):
    with mesh.off():
        if of == "backbone":
            return networks.backbone_tokens(params, images_BHWC)[1]
        return networks.image(params, images_BHWC).patches

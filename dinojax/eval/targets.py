"""What is evaluated: a checkpoint of a run, or weights of any format; nothing of training."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from dinojax import config as configs
from dinojax.checkpoint import checksum
from dinojax.checkpoint.manager import COMMITTED, open_checkpoints
from dinojax.config import Config, ConfigError, rules
from dinojax.config.overrides import parse
from dinojax.config.recipe import flat
from dinojax.configs import base
from dinojax.data.sources import kind_of, open_source
from dinojax.eval import layout_files
from dinojax.eval import text_model as text_models
from dinojax.eval.baselines import random_params
from dinojax.eval.cache import FeatureCache
from dinojax.eval.contract import Setting
from dinojax.eval.features import EvalTransform
from dinojax.eval.network import Network, of_backbone
from dinojax.eval.text_model import TextModel
from dinojax.models import zoo
from dinojax.models.convnext import ConvNextSpec
from dinojax.models.networks import Networks, with_attention
from dinojax.models.params import abstract_params
from dinojax.runs import records
from dinojax.sharding import mesh
from dinojax.sharding.mesh import Layout
from dinojax.weights import run as weights_of
from dinojax.weights.preprocess import Preprocessing

SPLITS = ("train", "val")  # sub-folders of --data: to learn from, to be judged by
BY_KIND = {"objects.data": "boxes", "propagation.data": "videos"}  # key -> kind of a layout


@dataclasses.dataclass(frozen=True)
class Target:
    """A network, or those of a run's checkpoints, and the data that it is evaluated on."""

    config: Config
    setting: Setting
    layout: Layout
    folder: Path  # receives records, and features
    network: Callable[[dict], Network]
    load: Callable[[int | None], tuple[dict, int | None]]  # step -> (parameters, step)
    told: str  # where it is from
    matmul: str  # precision of float32 products
    random: Callable[[], dict] | None = None  # parameters as before the first step
    words: Callable[[int | None], dict] | None = None  # of a text stage: all beside the backbone

    def has_step(self, step: int) -> bool:
        """Whether a run's checkpoint is there."""
        folder = Path(self.told) / "checkpoints" / self.config.stage / str(step)
        return (folder / COMMITTED).exists()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The devices and the precision of products of the run."""
        with mesh.use(self.layout), jax.default_matmul_precision(self.matmul):
            yield

    def open(
        self, step: int | None, *, cached: Path | None
    ) -> tuple[Network, int | None, dict[str, Any]]:
        """(network, its step, what tells its weights); cached: the folder of features, if any.

        Raises FileNotFoundError for a step that is not there, ValueError for a damaged one.
        """
        params, step = self.load(step)
        own = records.fingerprint(checksum.arrays(params))
        told, network = {"from": self.told, "checksum": own}, self.network(params)
        if self.words is not None:
            network.words = self.words(step)
            told["checksum"] = records.fingerprint([own, checksum.arrays(network.words)])
        if cached is not None:
            precision = {name: self.config.precision.values()[name] for name in PRECISION}
            tells = {"checksum": own, **precision}
            network = dataclasses.replace(network, cache=FeatureCache(cached, tells))
        return network, step, told


PRECISION = ("compute", "matmul")


def of_run(
    directory: Path,
    overrides: Sequence[str],
    *,
    stage: str | None = None,
    data: str | None = None,
) -> Target:
    """The checkpoints of a stage, None = the one the run is at. data: as `of_weights`."""
    if data is not None:
        overrides = [*overrides, *_data_settings(data, overrides)]
    config = configs.read(directory, overrides, stage=stage)
    layout = mesh.from_section(config.mesh)
    network, like = backbone_of(config, layout)

    def load(step: int | None) -> tuple[dict, int | None]:
        checkpoints = open_checkpoints(config, directory, read_only=True)
        with contextlib.closing(checkpoints):
            step = checkpoints.restore_meta(step)["step"]
            return checkpoints.restore_parts(like, step)["ema"]["backbone"], step

    return Target(
        config,
        setting_of_run(config, directory),
        layout,
        folder=directory / records.FOLDER,
        network=network,
        load=load,
        told=str(directory),
        matmul=config.precision.matmul,
        random=lambda: random_params(module_of(config, layout), layout),
        words=_words(config, directory) if config.text.enabled else None,
    )


def _words(config: Config, directory: Path) -> Callable[[int | None], dict]:
    return lambda step: text_models.params_of_run(directory, config, step)[0]


def setting_of_run(config: Config, directory: Path) -> Setting:
    """What evaluations of a run are built from; images of training are opened when asked for."""
    return Setting(
        config,
        EvalTransform.from_sections(image=config.image, knn=config.knn),
        patch_size=config.model.patch_size,
        images=functools.partial(open_source, config.data, channels=config.image.channels),
        directory=directory,
    )


def of_weights(
    path: str,
    data: str,
    overrides: Sequence[str],
    *,
    out: Path | None = None,
    prefix: str = "",
    backbone: str | None = None,
) -> Target:
    """A file or folder of weights of any format; of dino.txt with its words.

    data: a folder with sub-folders train and val, labelled by their sub-folders; or images without
    labels, of any kind that a run takes. out: receives the records, None = beside the weights.
    backbone: of files of dino.txt that hold none. Keys of the config have their defaults, but for
    what the weights say of themselves.
    """
    spec, own, whole, text = _read(path, prefix, backbone)
    own.check_statistics(spec.channels)
    if own.out_size is None or not isinstance(own.resize_size or own.side, int):
        raise ValueError(
            f"the preprocessing of {path} makes images of differing sizes or sides; give its file "
            "one size (crop_size, resize_size)."
        )
    known = _known(spec, own)
    given = [*overrides, *_data_settings(data, overrides)]
    config = _config(path, known, given)
    sizes = {"crop_size": config.knn.crop_size, "resize_size": config.knn.resize_size}
    asked = {n: size for n, size in sizes.items() if size != known[f"knn.{n}"]}
    transform: Any = dataclasses.replace(own, **sizes) if asked else own
    layout = mesh.from_section(config.mesh)
    params = jax.device_put(whole, layout.sharding())
    beside = Path(path) if Path(path).is_dir() else Path(f"{path}.{records.FOLDER}")
    folder = out or (beside / records.FOLDER if Path(path).is_dir() else beside)
    setting = Setting(
        config,
        transform,
        patch_size=spec.patch_size,
        images=functools.partial(open_source, config.data, channels=spec.channels),
        directory=folder,
        text=text,
    )
    return Target(
        config,
        setting,
        layout,
        folder=folder,
        network=of_backbone(zoo.module(spec), layout),
        load=lambda _: (params, None),
        told=str(path),
        matmul=config.precision.matmul,
        words=None if text is None else lambda _: _but_backbone(text.params),
        random=lambda: random_params(zoo.module(spec), layout),
    )


def _known(spec: zoo.Spec, own: Preprocessing) -> dict[str, Any]:
    """Keys of a config that weights tell."""
    return {
        "model.patch_size": spec.patch_size,
        "image.channels": spec.channels,
        "image.normalize": own.normalize,
        "image.mean": own.mean or (),
        "image.std": own.std or (),
        "knn.crop_size": own.side,
        "knn.resize_size": own.resize_size or own.side,
        "precision.compute": "float32",
        "data.source": "folder",
    }


def _read(
    path: str, prefix: str, backbone: str | None
) -> tuple[zoo.Spec, Preprocessing, dict, TextModel | None]:
    """(spec, preprocessing and parameters of a backbone, the words beside it)."""
    if not text_models.is_released(path):
        if backbone is not None:
            raise ConfigError(f"--backbone goes with files of dino.txt; {path} is a backbone.")
        found = weights_of.load(path, prefix=prefix)
        return found.spec, found.preprocessing, found.params, None
    if prefix:
        raise ConfigError(f"--prefix {prefix}: {path} has the names of dino.txt; leave it out.")
    text = text_models.load(path, backbone=backbone)
    return text.networks.backbone.spec, text.preprocessing, text.params["backbone"], text


def _but_backbone(params: dict) -> dict:
    return {part: own for part, own in params.items() if part != "backbone"}


def _config(path: str, known: dict[str, Any], overrides: Sequence[str]) -> Config:
    default = flat(base.get_config())
    given = parse(overrides, default)
    values, sources = default | known | given, dict.fromkeys(default, "base")
    sources |= dict.fromkeys(given, "--set")
    if broken := rules.of_single_keys(values):
        raise ConfigError(f"{path}: " + "\n  ".join(broken))
    return Config(values, sources, path)


def _data_settings(data: str, overrides: Sequence[str]) -> list[str]:
    """What --data says, as settings; keys that --set gives besides are left to that."""
    root = Path(layout_files.root_of(data) if layout_files.is_layout(data) else data)
    if not root.exists():
        raise FileNotFoundError(f"--data {data} does not exist.")
    learn, judge = (root / name for name in SPLITS)
    if layout_files.is_layout(data):
        said = {"knn.bank": data, "knn.query": data, "data.path": str(root)}
        said |= {key: data for key, kind in BY_KIND.items() if layout_files.kind_of(data) == kind}
    elif learn.is_dir() and judge.is_dir():
        said = {"knn.bank": str(learn), "knn.query": str(judge), "data.path": str(learn)}
    else:
        said = {"knn.bank": "", "knn.query": "", "data.path": data}
    said |= {"data.source": kind_of(said["data.path"]), "data.mixture": "()"}
    taken = {override.partition("=")[0].strip() for override in overrides}
    return [f"{key}={value}" for key, value in said.items() if key not in taken]


def backbone_of(config: Config, layout: Layout) -> tuple[Callable[[dict], Network], dict]:
    """Of parameters the network of a run, and the shapes of its ema on the devices.

    Nothing of training is built: no heads, no losses, no optimizer, no teacher.
    """
    backbone = module_of(config, layout)
    params = abstract_params(Networks(backbone, None, None), layout)
    return of_backbone(backbone, layout), {"ema": {"backbone": params["backbone"]}}


def module_of(config: Config, layout: Layout) -> Any:
    """The backbone of a run, with the attention that its evaluations take."""
    backbone = zoo.backbone(
        config.model,
        config.rope,
        channels=config.image.channels,
        attention="plain",
        dtype=jax.numpy.dtype(config.precision.compute),
    )
    spec = backbone.spec
    if isinstance(spec, ConvNextSpec):
        return backbone
    rows, columns = spec.grid(config.knn.crop_size, config.knn.crop_size)
    images = -(-config.knn.batch_size // layout.num_shards)
    tokens = 1 + spec.num_registers + rows * columns
    shape = (images, tokens, spec.num_heads, spec.head_width)
    return zoo.module(with_attention(spec, config.model.attention, [shape]))

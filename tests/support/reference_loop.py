"""Trains the PyTorch reference with its own loop on a CPU, from a checkout that is given by path.

Nothing of it is copied and no file of it is changed. What its loop wants of CUDA and of several
processes has a stand-in, set while it is imported; everything that decides what is learned, from
samplers, crops and masks to losses, schedules and the optimizer, is its own.
"""

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from PIL import Image

from dinojax.augment.photometric import EPS

TERMS = {  # of its metrics -> of ours
    "dino_local_crops_loss": "dino_local",
    "dino_global_crops_loss": "dino_global",
    "ibot_loss": "ibot",
    "koleo_loss": "koleo",
}


def open_reference(checkout: str | Path) -> SimpleNamespace:
    """The modules of the reference that a run needs. Raises FileNotFoundError."""
    checkout = Path(checkout)
    if not (checkout / "dinov3" / "train" / "train.py").is_file():
        raise FileNotFoundError(
            f"{checkout} holds no dinov3/train/train.py; give a checkout of "
            "https://github.com/facebookresearch/dinov3"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    names = {
        "train": "dinov3.train.train",
        "arch": "dinov3.train.ssl_meta_arch",
        "augmentations": "dinov3.data.augmentations",
        "configs": "dinov3.configs",
        "logging": "dinov3.logging",
        "vits": "dinov3.models.vision_transformer",
        "utils": "dinov3.utils",
        "distributed": "dinov3.distributed",
    }
    return SimpleNamespace(**{name: importlib.import_module(at) for name, at in names.items()})


class PerCrop(torch.nn.Module):
    """Each crop to mean 0 and standard deviation 1, as image.normalize=per_crop does it."""

    def forward(self, crop_CHW: torch.Tensor) -> torch.Tensor:
        centered_CHW = crop_CHW - crop_CHW.mean()
        return centered_CHW / centered_CHW.square().mean().sqrt().clamp(min=EPS)


class Images(torch.utils.data.Dataset):
    """Decoded images with the reference's transforms, as its own data sets apply them."""

    def __init__(self, paths: Sequence[Path], transform: Callable, target_transform: Callable):
        self._images = [Image.open(path).convert("RGB") for path in paths]
        self._transform, self._target_transform = transform, target_transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int):
        return self._transform(self._images[index]), self._target_transform(None)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of the network that stands in for the reference's smallest ViT."""

    width: int
    depth: int
    num_heads: int
    prototype_factor: float  # multiplies the prototypes before the first step


def train(
    reference: SimpleNamespace,
    recipe: dict,
    images: Sequence[Path],
    *,
    seed: int,
    shape: Shape,
    directory: Path,
) -> tuple[list[dict[str, float]], torch.nn.Module]:
    """(the terms of every step, the ema's backbone) of one run.

    recipe: sections that its default configuration is filled in with. seed: of weights, order,
    crops, masks and all else. directory: for what its loop writes.
    """
    cfg = reference.configs.get_default_config()
    cfg.merge_with(recipe)
    cfg.train.seed, cfg.train.output_dir = seed, str(directory)
    rows: list[dict[str, float]] = []
    with stand_ins(reference, images, shape):
        reference.utils.fix_random_seeds(seed)
        with torch.device("meta"):
            model = reference.arch.SSLMetaArch(cfg)
        model.prepare_for_distributed_training()
        _scale_prototypes(model, shape.prototype_factor)
        _record(model, rows)
        reference.train.do_train(cfg, model, resume=False)
    return rows, model.model_ema.backbone


def embed(backbone: torch.nn.Module) -> Callable:
    """(unused, images [B, H, W, C]) -> cls [B, D], mean of patches [B, D], patches, in numpy."""

    @torch.inference_mode()
    def apply(_, images_BHWC: np.ndarray):
        images_BCHW = torch.from_numpy(np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)))
        found = backbone(images_BCHW, is_training=True)
        cls, patches = found["x_norm_clstoken"], found["x_norm_patchtokens"]
        return cls.numpy(), patches.mean(dim=1).numpy(), patches.numpy()

    return apply


def _record(model, rows: list) -> None:
    """Keeps the terms of every step; its own log holds medians of twenty."""
    inner = model.forward_backward

    def forward_backward(*args, **kwargs):
        total, terms = inner(*args, **kwargs)
        found = {ours: terms[theirs].item() for theirs, ours in TERMS.items()}
        rows.append({"total": total.item(), **found})
        return total, terms

    model.forward_backward = forward_backward


def _scale_prototypes(model, factor: float) -> None:
    inner = model.init_weights

    @torch.no_grad()
    def init_weights():
        inner()
        for networks in (model.student, model.model_ema):
            for name in ("dino_head", "ibot_head"):
                networks[name].last_layer.weight.mul_(factor)

    model.init_weights = init_weights


@contextlib.contextmanager
def stand_ins(reference: SimpleNamespace, images: Sequence[Path], shape: Shape):
    """What the loop asks of CUDA, of other processes and of its data sets, for one process.

    Of one process a sum or mean over all is the value itself, and sharding changes nothing.
    """

    def gather(output, tensor, group=None):
        output.copy_(tensor.reshape(output.shape))

    def parallelize(trained_model, inference_only_models, **_):
        for networks in (trained_model, *inference_only_models):
            networks.to_empty(device="cpu")

    def vit(patch_size=16, **options):
        return reference.vits.DinoVisionTransformer(
            patch_size=patch_size,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.num_heads,
            **options,
        )

    def make_dataset(*, dataset_str, transform, target_transform):
        return Images(images, transform, target_transform)

    torch.compiler.set_stance("force_eager")
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (torch.Tensor, "cuda", lambda self, *_, **__: self),
            (torch.cuda, "synchronize", lambda *_: None),
            (torch.cuda, "empty_cache", lambda: None),
            (torch.distributed, "all_reduce", lambda *_, **__: None),
            (torch.distributed, "all_gather_into_tensor", gather),
            (reference.arch, "ac_compile_parallelize", parallelize),
            (reference.vits, "vit_small", vit),
            (reference.train, "make_dataset", make_dataset),
            (
                reference.augmentations,
                "make_normalize_transform",
                lambda **_: PerCrop(),
            ),
            (
                reference.logging.MetricLogger,
                "synchronize_between_processes",
                lambda self: None,
            ),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield

"""The PyTorch reference's own training step on one device, run when told: see `benchmarks.gpu`.

    python -m benchmarks.reference_step CHECKOUT --images 64       # then a number of steps a line

Its source is imported from CHECKOUT, its configuration filled in with the ImageNet recipe of ViT-L,
which `vitl16_in1k` is here. A step is what its loop does between two batches: forward and backward,
clipping, optimizer, moving average, in its precision and compiled as it compiles. The batch stays
on the device, so neither loading nor crops are in the time. `--small` is a network of two blocks on
a CPU, not compiled, with stand-ins for what it asks of CUDA.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

import torch

from dinojax.weights import libraries
from tests.support import reference_loop

OUT = sys.stdout  # where the caller reads; all else that is printed goes to standard error
RECIPE = {
    "student": {
        "arch": "vit_large",
        "patch_size": 16,
        "drop_path_rate": 0.3,
        "layerscale": 1e-5,
        "n_storage_tokens": 0,
    },
    "dino": {
        "head_n_prototypes": 65536,
        "head_hidden_dim": 2048,
        "head_bottleneck_dim": 256,
    },
    "ibot": {
        "head_n_prototypes": 65536,
        "head_hidden_dim": 2048,
        "head_bottleneck_dim": 256,
    },
    "crops": {
        "global_crops_size": 224,
        "local_crops_size": 96,
        "local_crops_number": 8,
    },
    "optim": {"clip_grad": 3.0, "layerwise_decay": 0.9},
    "train": {"compile": True, "batch_size_per_gpu": 64},
    "compute_precision": {"param_dtype": "bf16"},
}
SMALL = {
    "student": {"arch": "vit_small"},
    "dino": {"head_n_prototypes": 64, "head_hidden_dim": 32, "head_bottleneck_dim": 16},
    "ibot": {"head_n_prototypes": 64, "head_hidden_dim": 32, "head_bottleneck_dim": 16},
    "crops": {"global_crops_size": 32, "local_crops_size": 16, "local_crops_number": 2},
    "train": {"compile": False, "batch_size_per_gpu": 4},
    "compute_precision": {"param_dtype": "fp32"},
}
SHAPE = reference_loop.Shape(width=32, depth=2, num_heads=2, prototype_factor=1.0)


def batch(reference, cfg) -> dict:
    """Noise, with masks as its own collation draws them."""
    side = cfg.crops.global_crops_size // cfg.student.patch_size
    num_images, crops = cfg.train.batch_size_per_gpu, cfg.crops

    def noise(count: int, size: int) -> list[torch.Tensor]:
        return list(torch.randn(count, 3, size, size))

    samples = [
        (
            {
                "global_crops": noise(2, crops.global_crops_size),
                "local_crops": noise(crops.local_crops_number, crops.local_crops_size),
            },
            (),
        )
        for _ in range(num_images)
    ]
    found = reference.train.collate_data_and_cast(
        samples,
        mask_ratio_tuple=cfg.ibot.mask_ratio_min_max,
        mask_probability=cfg.ibot.mask_sample_probability,
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[cfg.compute_precision.param_dtype],
        n_tokens=side * side,
        mask_generator=reference.train.MaskingGenerator(
            input_size=(side, side), max_num_patches=side * side // 2
        ),
    )
    found["global_batch_size"] = num_images
    if torch.cuda.is_available():
        found = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in found.items()}
    return found


def build(reference, cfg):
    """(Model, optimizer) as its own program makes them."""
    with torch.device("meta"):
        model = reference.arch.SSLMetaArch(cfg)
    model.prepare_for_distributed_training()
    if torch.cuda.is_available():
        model.to_empty(device="cuda")
    model.train()
    optimizer = reference.train.build_optimizer(cfg, model.get_params_groups())
    model.init_weights()
    reference.train.apply_optim_scheduler(optimizer, 1e-4, 0.04, 1e-4)
    return model, optimizer


def step(model, optimizer, data: dict, clip: float) -> torch.Tensor:
    optimizer.zero_grad(set_to_none=True)
    total, _ = model.forward_backward(data, teacher_temp=0.07, iteration=0)
    for part in model.student.values():
        torch.nn.utils.clip_grad_norm_(part.parameters(), max_norm=clip)
    optimizer.step()
    model.update_ema(0.99)
    return total


def answer(model, optimizer, data: dict, clip: float) -> None:
    """Seconds of a step for every number of steps that standard input holds, a line each."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for line in sys.stdin:
        wait()
        start = time.perf_counter()
        for _ in range(int(line)):
            total = step(model, optimizer, data, clip)
        wait()
        if not torch.isfinite(total):
            raise FloatingPointError(f"the reference's loss is {total.item()}")
        told((time.perf_counter() - start) / int(line))


def told(value) -> None:
    """A line of JSON for the caller."""
    OUT.write(f"{json.dumps(value)}\n")
    OUT.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    with libraries._torchvision_operators("timm"):  # a torch without CUDA lacks two of them
        reference = reference_loop.open_reference(args.checkout)
    cfg = reference.configs.get_default_config()
    cfg.merge_with(RECIPE)
    if args.small:
        cfg.merge_with(SMALL)
    else:
        cfg.train.batch_size_per_gpu = args.images
    with contextlib.ExitStack() as stack:
        if args.small:
            stack.enter_context(reference_loop.stand_ins(reference, [], SHAPE))
        else:
            reference.distributed.enable(overwrite=True)
        torch.manual_seed(0)
        model, optimizer = build(reference, cfg)
        data = batch(reference, cfg)
        step(model, optimizer, data, cfg.optim.clip_grad)  # compiles
        told({"torch": torch.__version__, "images": cfg.train.batch_size_per_gpu})
        answer(model, optimizer, data, cfg.optim.clip_grad)


if __name__ == "__main__":
    sys.stdout = sys.stderr
    main()

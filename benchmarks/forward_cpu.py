"""CPU forward pass of ViT-S/16 against transformers and timm, in one process and with one network.

    python -m benchmarks.forward_cpu --sizes 224 256 --batch 8

A line of JSON per size. value: images per second, from the fastest of `repeats` calls. baseline:
the same for the fastest of transformers and timm, each as it is (eager) and through torch.compile;
`all` holds every one. They take turns, so that other work on the machine slows them alike; `load`
is the machine's load average at the end. `processor`: the same per second of processor time of all
threads, which other work hardly changes; under `taskset -c 0` no thread waits for another in it.
equal: all tokens agree with ours to 2e-5.
Needs the extra `torch`; torch.compile needs a C++ compiler, and is left out with --no-compile.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.rows import row
from dinojax.models.block import VitSpec
from dinojax.models.zoo import VITS
from dinojax.weights import libraries, specs
from dinojax.weights.certificate import TOLERANCE
from dinojax.weights.export import export
from dinojax.weights.load import load
from dinojax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dinojax.weights.tensors import held
from dinojax.weights.writers import Network

OURS = "dinojax"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 256], help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="images per call")
    parser.add_argument("--repeats", type=int, default=10, help="calls of each; the fastest counts")
    parser.add_argument("--devices", type=int, help="JAX's CPU devices; default: one per core")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return parser.parse_args()


def network() -> Network:
    """ViT-S/16 as released, with random weights."""
    spec = VitSpec(**VITS["vits"], num_registers=4, norm="layernorm_1e5", mask_k_bias=True)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, tensor in specs.expected(spec).items():
        values = rng.normal(0, 0.02, tensor.shape).astype(np.float32)
        values += 1.0 if "gamma" in name or ("norm" in name and name.endswith("weight")) else 0.0
        if name.endswith("qkv.bias"):
            values[spec.width : 2 * spec.width] = 0
        tensors[name] = held(values)
    own = Preprocessing(224, 256, "fixed", IMAGENET_MEAN, IMAGENET_STD)
    return Network(spec, tensors, {}, own, {"from": "random numbers"})


def open_all(folder: Path, *, cores: int, compiled: bool) -> dict:
    """name -> images [B, H, W, C] to tokens [B, N, D], all the same network."""
    import torch

    found = {}
    for format in ("hf", "timm"):
        if (reason := libraries.missing(format)) is not None:
            raise ModuleNotFoundError(reason)
        export(network(), folder / format, format=format, certify=False)
    import timm
    from transformers import AutoModel

    torch.set_num_threads(cores)
    hf = AutoModel.from_pretrained(str(folder / "hf")).eval()
    models = {
        "transformers": lambda images: hf(images).last_hidden_state,
        "timm": timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True)
        .eval()
        .forward_features,
    }
    for name, model in models.items():
        found[f"{name} eager"] = torch_call(model)
        if compiled:
            found[f"{name} compiled"] = torch_call(torch.compile(model))
    backbone = load(folder / "hf").over()

    def ours(images_BHWC):
        out = jax.block_until_ready(backbone(images_BHWC))
        return np.concatenate([out.cls[:, None], out.registers, out.patches], axis=1)

    return {OURS: ours, **found}


def torch_call(model):
    import torch

    def call(images_BHWC):
        images = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            return model(images).numpy()

    return call


def measure(calls: dict, images: np.ndarray, repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each call by the clock and of the processor, [repeats, 2], taken in turns."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter(), time.process_time()
            call(images)
            seconds[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return {name: np.asarray(found) for name, found in seconds.items()}


def main() -> None:
    args = parse_args()
    cores = len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", args.devices or cores)
    with tempfile.TemporaryDirectory() as folder:
        calls = open_all(Path(folder), cores=cores, compiled=not args.no_compile)
        for size in args.sizes:
            shape = (args.batch, size, size, 3)
            images = np.random.default_rng(size).normal(size=shape).astype(np.float32)
            tokens = {name: call(images) for name, call in calls.items()}
            scale = max(1.0, float(np.abs(tokens[OURS]).max()))
            errors = {n: float(np.abs(t - tokens[OURS]).max()) / scale for n, t in tokens.items()}
            seconds = measure(calls, images, args.repeats)
            rates, processor = (
                {name: args.batch / float(found[:, i].min()) for name, found in seconds.items()}
                for i in range(2)
            )
            best = max((name for name in rates if name != OURS), key=lambda name: rates[name])
            row(
                name="forward_cpu",
                config={"model": "vits", "size": size, "batch": args.batch},
                value=round(rates[OURS], 2),
                unit="images/s",
                baseline=round(rates[best], 2),
                ratio=round(rates[OURS] / rates[best], 3),
                equal=max(errors.values()) <= TOLERANCE,
                fastest=best,
                all={name: round(rate, 2) for name, rate in rates.items()},
                processor={name: round(rate, 2) for name, rate in processor.items()},
                cores=cores,
                largest_error=max(errors.values()),
                libraries=libraries.versions("hf") | libraries.versions("timm"),
                load=[round(value, 1) for value in os.getloadavg()],
            )


if __name__ == "__main__":
    main()

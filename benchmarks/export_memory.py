"""Peak memory of an export, beside the largest tensor of the network.

    python -m benchmarks.export_memory --model vitb --format hf

The last line is JSON. value: MiB above what the process held before the export, at its peak: the
larger of what Python and numpy allocated, of which nothing is missed, and of the anonymous memory
of the process, sampled every millisecond, which sees other libraries too. Pages of mapped files,
which the system takes back when it wants, are in neither. What libraries allocate once is runtime:
an export of two blocks 48 wide comes first. baseline: twice the largest tensor. ratio: baseline
over value. The export is `dinojax export --no-certificate`: a certificate runs the network, and so
holds it. equal: what was written reads back bit by bit.
"""

import argparse
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np

from benchmarks.rows import row
from dinojax.models.block import VitSpec
from dinojax.models.zoo import VITS
from dinojax.weights import specs
from dinojax.weights.export import export, from_source
from dinojax.weights.load import open_source, resolve
from dinojax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dinojax.weights.tensors import Tensor
from dinojax.weights.writers import Network

MIB = 2**20


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vitb", choices=[n for n in VITS if "dinov2" not in n])
    parser.add_argument("--format", default="hf", choices=("meta", "hf", "timm"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    return parser.parse_args()


def network(model: str, **shrunk: int) -> Network:
    """A backbone whose random tensors are made when they are read."""
    sizes = VITS[model] | shrunk
    bias = sizes.get("qkv_bias", True)
    spec = VitSpec(**sizes, num_registers=4, norm="layernorm_1e5", mask_k_bias=bias)

    def tensor(number: int, name: str, shape: tuple[int, ...]) -> Tensor:
        def read():
            values = np.random.default_rng(number).standard_normal(shape, np.float32)
            if name.endswith("qkv.bias"):  # as released: k has none
                values[spec.width : 2 * spec.width] = 0
            return values

        return Tensor(shape, np.dtype(np.float32), read)

    wanted = specs.expected(spec)
    tensors = {name: tensor(i, name, wanted[name].shape) for i, name in enumerate(wanted)}
    own = Preprocessing(224, 256, "fixed", IMAGENET_MEAN, IMAGENET_STD)
    return Network(spec, tensors, {}, own, {"from": "random numbers"})


def anonymous() -> int:
    """Bytes of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Peak(threading.Thread):
    """The largest `anonymous` while it runs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.largest, self.stopped = 0, threading.Event()

    def run(self):
        while not self.stopped.is_set():
            self.largest = max(self.largest, anonymous())
            time.sleep(0.001)

    def stop(self) -> int:
        self.stopped.set()
        self.join()
        return self.largest


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, out = Path(folder) / "first", Path(folder) / "out"
        export(network(args.model), first, format="dinojax", certify=False)
        found = from_source(open_source(first), overrides={})
        largest = max(int(np.prod(t.shape)) * t.dtype.itemsize for t in found.tensors.values())
        total = (first / "backbone.safetensors").stat().st_size
        small = network(args.model, width=48, depth=2, num_heads=3)
        options = {"format": args.format, "dtype": args.dtype, "certify": False}
        export(small, Path(folder) / "small", **options)
        before = anonymous()
        peak = Peak()
        peak.start()
        tracemalloc.start()
        began = time.perf_counter()
        export(found, out, **options)
        seconds = time.perf_counter() - began
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        used = max(peak.stop() - before, traced)
        again = resolve(open_source(out), overrides={})[0]
        same = all(
            np.array_equal(tensor.read(), again[name].read())
            for name, tensor in found.tensors.items()
            if name in again
        )
        row(
            name="export_memory",
            config={"model": args.model, "format": args.format, "dtype": args.dtype},
            value=round(used / MIB, 1),
            unit="MiB",
            baseline=round(2 * largest / MIB, 1),
            ratio=round(2 * largest / used, 2),
            equal=same if args.dtype is None else None,
            traced_mib=round(traced / MIB, 1),
            file_mib=round(total / MIB, 1),
            runtime_mib=round(before / MIB, 1),
            seconds=round(seconds, 2),
        )


if __name__ == "__main__":
    main()

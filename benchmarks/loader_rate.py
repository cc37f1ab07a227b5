"""Images/s of one core of the host, ours (decode into a box) against ten crops by Pillow.

    python -m benchmarks.loader_rate --images 200 --long 20000

The last line is JSON. value: images per second of processor time through read, decode and box, on
500x375 JPEGs. baseline: the same images through the usual multi-crop pipeline (two global and eight
local crops, flip, colour jitter, grayscale, blur, solarise, normalise) in Pillow and NumPy with the
parameters of configs/keys/. equal: our boxes hold Pillow's pixels. The rates of whole loaders
with 1 and 2 worker processes are by the clock on the wall; memory is that of all processes.
"""

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks.rows import row
from dinojax.configs import base
from dinojax.data.folder import folder
from dinojax.data.loader import Loader, ReadBatch

SIZE = 375, 500  # pixels, height and width: the usual size in ImageNet
BATCH = 16


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="different JPEG files")
    parser.add_argument("--passes", type=int, default=3, help="timed passes over them; best counts")
    parser.add_argument("--crops-of", type=int, default=40, help="images for the baseline")
    parser.add_argument("--long", type=int, default=20_000, help="images of the memory test")
    return parser.parse_args()


def write_images(root: Path, count: int) -> None:
    """Photograph-like JPEGs: smooth shapes, edges and noise, some 50 KB each at quality 90."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC), np.float32)
        blocks = np.kron(rng.integers(-30, 30, (25, 25, 1)), np.ones((15, 20, 1)))
        pixels = np.clip(smooth + blocks + rng.normal(0, 6, smooth.shape), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number:05}.jpg", quality=90)


def read_rate(source, box_size: int, passes: int) -> float:
    read = ReadBatch(
        source=source,
        batch_size=BATCH,
        box_size=box_size,
        seed=0,
        start=0,
        rows_B=np.arange(BATCH),
        replace=True,
    )
    num_batches, best = len(source) // BATCH, 0.0
    for number in range(passes):
        start = time.process_time()
        for batch in range(num_batches):
            read(number * num_batches + batch)
        best = max(best, num_batches * BATCH / (time.process_time() - start))
    return best


def crop_rate(source, count: int, passes: int, c) -> float:
    rng, best = np.random.default_rng(0), 0.0
    for _ in range(passes):
        start = time.process_time()
        for index in range(count):
            pillow_crops(source.encoded(index).data, c, rng)
        best = max(best, count / (time.process_time() - start))
    return best


def pillow_crops(data: bytes, c, rng) -> list[np.ndarray]:
    """What a DataLoader worker of a multi-crop pipeline does with one image."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    kinds = [("global", c.crops.global_size, 0), ("global", c.crops.global_size, 1)]
    kinds += [("local", c.crops.local_size, 2)] * c.crops.num_local
    crops = []
    for kind, size, place in kinds:
        crop = resized_crop(image, size, c.crops[f"{kind}_area"], c.crops.aspect, rng)
        crops.append(normalized(distorted(crop, c.augment, place, rng), c.image))
    return crops


def resized_crop(image, size, area, aspect, rng):
    width, height = image.size
    for _ in range(10):
        target = rng.uniform(*area) * width * height
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        w, h = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
        if w <= width and h <= height:
            break
    else:
        w = h = min(width, height)
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    box = (left, top, left + w, top + h)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def distorted(image, augment, place: int, rng):
    if rng.random() < augment.flip_rate:
        image = ImageOps.mirror(image)
    if rng.random() < augment.jitter_rate:
        enhancers = {
            "brightness": ImageEnhance.Brightness,
            "contrast": ImageEnhance.Contrast,
            "saturation": ImageEnhance.Color,
        }
        for name, enhancer in enhancers.items():
            image = enhancer(image).enhance(1 + rng.uniform(-1, 1) * augment[name])
        hue, saturation, value = image.convert("HSV").split()
        shift = round(255 * rng.uniform(-augment.hue, augment.hue))
        hue = Image.fromarray(((np.asarray(hue).astype(int) + shift) % 256).astype(np.uint8))
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if rng.random() < augment.grayscale_rate:
        image = ImageOps.grayscale(image).convert("RGB")
    if rng.random() < augment.blur_rates[place]:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*augment.blur_sigma)))
    if place == 1 and rng.random() < augment.solarize_rate:
        image = ImageOps.solarize(image, augment.solarize_threshold)
    return image


def normalized(image, section) -> np.ndarray:
    values = np.asarray(image, np.float32) / 255
    return (values - np.float32(section.mean)) / np.float32(section.std)


def loader_run(source, box_size: int, count: int, num_workers: int) -> tuple[float, list[int]]:
    """(images/s by the wall clock, MiB of all processes at ten moments) over `count` images."""
    options = dict(batch_size=BATCH, box_size=box_size, seed=0, num_workers=num_workers)
    with Loader(source, **options, num_threads=1) as loader:
        for _ in range(16):  # processes have started and their queues are full
            next(loader)
        first, start, memory = loader.position, time.perf_counter(), []
        while loader.position - first < count:
            next(loader)
            if (loader.position - first) * 10 >= count * (len(memory) + 1):
                memory.append(resident_mib())
        return (loader.position - first) / (time.perf_counter() - start), memory


def resident_mib() -> int:
    """Private memory of this process and its descendants, from /proc (Linux)."""
    parents, total, mine = {}, 0, {os.getpid()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # ended meanwhile
            parents[int(entry.name)] = int(fields[1])
    while more := {p for p, parent in parents.items() if parent in mine} - mine:
        mine |= more
    for process in mine:
        try:
            resident, shared = (Path("/proc") / str(process) / "statm").read_text().split()[1:3]
        except OSError:
            continue
        total += (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return total >> 20


def boxes_equal(source, box_size: int) -> bool:
    for index in range(8):
        want = np.asarray(Image.open(io.BytesIO(source.encoded(index).data)).convert("RGB"))
        if not np.array_equal(source.read(index, box_size).pixels, want):
            return False
    return True


def main():
    args, c = parse_args(), base.get_config()
    box_size = c.data.box_size
    with tempfile.TemporaryDirectory() as root:
        write_images(Path(root), args.images)
        source = folder(path=root, channels=3)
        value = read_rate(source, box_size, args.passes)
        baseline = crop_rate(source, min(args.crops_of, args.images), args.passes, c)
        print(f"one core: {value:,.0f} images/s into boxes, {baseline:,.1f} by ten Pillow crops")
        rates = {}
        for workers in (1, 2):
            count = args.long if workers == 2 else max(args.images, args.long // 10)
            rates[workers], memory = loader_run(source, box_size, count, workers)
            print(f"{workers} workers: {rates[workers]:,.0f} images/s, memory {memory} MiB")
        equal = boxes_equal(source, box_size)
    row(
        name="loader_rate",
        config=vars(args),
        value=round(value, 1),
        unit="images/s/core",
        baseline=round(baseline, 2),
        ratio=round(value / baseline, 2),
        equal=equal,
        one_worker=round(rates[1], 1),
        two_workers=round(rates[2], 1),
        memory_mib=memory,
        memory_growth=round(memory[-1] / memory[1] - 1, 4),
    )


if __name__ == "__main__":
    main()

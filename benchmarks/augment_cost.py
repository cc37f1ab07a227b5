"""Time of the crops and masks of one batch on the device, against the same crops by Pillow.

    python -m benchmarks.augment_cost --batch 16 --box 512 --step-seconds 0.5

The last line is JSON. value: images per second on the device, all operations. baseline: images per
second of crop + resize alone by Pillow in one process of the host. equal: the device's resized
crops agree with Pillow's within one level.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.rows import row
from dinojax.augment import resample
from dinojax.augment.spec import NUM_GLOBAL, ViewSpec
from dinojax.augment.views import make_views
from dinojax.configs import base
from dinojax.ops.flops import count_flops
from dinojax.sharding import gpu_memory

BOXES = {"global": (0.4, 0.99), "local": (0.23, 0.56)}  # sides of test boxes over the box size


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4, help="images, also the size of a group")
    parser.add_argument("--box", type=int, default=512, help="pixels, side of the uint8 box")
    parser.add_argument("--global-size", type=int, default=224, help="pixels")
    parser.add_argument("--local-size", type=int, default=96, help="pixels")
    parser.add_argument("--num-local", type=int, default=8, help="local crops per image")
    parser.add_argument("--patch-size", type=int, default=16, help="pixels")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--repeats", type=int, default=5, help="timed calls; the median counts")
    parser.add_argument("--step-seconds", type=float, help="of a training step on this batch")
    return parser.parse_args()


def spec_of(args) -> ViewSpec:
    c = base.get_config()
    c.crops.global_size, c.crops.local_size = args.global_size, args.local_size
    c.crops.num_local, c.image.channels = args.num_local, args.channels
    if args.channels == 1:
        c.image.normalize = "per_crop"
        c.augment.update(saturation=0.0, hue=0.0, grayscale_rate=0.0)
    return ViewSpec.from_sections(
        image=c.image,
        crops=c.crops,
        augment=c.augment,
        masks=c.masks,
        patch_size=args.patch_size,
        group_size=args.batch,
    )


def device_seconds(args, spec, images, sizes):
    """Median seconds of a call, seconds to compile, and bytes of scratch memory."""
    fn = jax.jit(functools.partial(make_views, spec=spec))
    start = time.perf_counter()
    compiled = fn.lower(jax.random.key(0), images, sizes).compile()
    compile_seconds = time.perf_counter() - start
    on_device = jax.device_put((images, sizes))
    jax.block_until_ready(compiled(jax.random.key(0), *on_device))
    times = []
    for i in range(args.repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(jax.random.key(i), *on_device))
        times.append(time.perf_counter() - start)
    memory = compiled.memory_analysis()
    scratch = memory.temp_size_in_bytes if memory else 0  # some backends do not say
    return np.median(times), compile_seconds, scratch


def pillow_crop(image, box, size):
    top, left, height, width = (int(v) for v in box)
    crop = image.crop((left, top, left + width, top + height))
    # One axis at a time: newer versions of Pillow swap the axes for tall crops.
    halfway = crop.resize((size, height), Image.Resampling.BICUBIC)
    return np.asarray(halfway.resize((size, size), Image.Resampling.BICUBIC))


def against_pillow(args, images):
    """Seconds of Pillow for all crops of the batch; largest difference; share that differs."""
    rng = np.random.default_rng(1)
    seconds, worst, differing, total = 0.0, 0.0, 0, 0
    plan = {"global": (NUM_GLOBAL, args.global_size), "local": (args.num_local, args.local_size)}
    for kind, (num, size) in plan.items():
        cut = jax.jit(functools.partial(resample.cut_crops, size=size))
        for image in images:
            sides = (rng.uniform(*BOXES[kind], (num, 2)) * args.box).astype(np.int32)
            corners = rng.integers(0, args.box - sides + 1)
            boxes = np.concatenate([corners, sides], axis=1).astype(np.int32)
            picture = Image.fromarray(image.squeeze())
            start = time.perf_counter()
            want = np.stack([pillow_crop(picture, box, size) for box in boxes])
            seconds += time.perf_counter() - start
            got = np.moveaxis(np.asarray(cut(image, boxes, np.zeros(num, bool))), 1, -1)
            difference = np.abs(got - want.reshape(got.shape))
            worst = max(worst, float(difference.max()))
            differing, total = differing + int((difference > 0).sum()), total + difference.size
    return seconds, worst, differing / total


def synthetic_images(args):
    """Smooth shapes with noise, since pure noise is unlike any photograph."""
    rng = np.random.default_rng(0)
    small = rng.uniform(0, 255, (args.batch, args.box // 16 + 1, args.box // 16 + 1, args.channels))
    smooth = jax.image.resize(
        small.astype(np.float32), (args.batch, args.box, args.box, args.channels), "cubic"
    )
    noise = rng.normal(0, 8, smooth.shape)
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def main():
    args = parse_args()
    gpu_memory.set_share()
    spec, images = spec_of(args), synthetic_images(args)
    sizes = np.full((args.batch, 2), args.box, np.int32)
    fn = functools.partial(make_views, spec=spec)
    gflop = count_flops(fn, jax.random.key(0), jnp.asarray(images), jnp.asarray(sizes))
    gflop = gflop / args.batch / 1e9
    seconds, compile_seconds, scratch = device_seconds(args, spec, images, sizes)
    pillow_seconds, worst, share_differing = against_pillow(args, images)
    print(f"device: {seconds * 1e3:.1f} ms a batch, {gflop:.2f} GFLOP an image in matrix products")
    print(f"compile: {compile_seconds:.1f} s, scratch memory: {scratch / 2**20:.0f} MiB")
    print(f"Pillow, crop and resize alone: {pillow_seconds * 1e3:.1f} ms in one process")
    print(f"largest difference: {worst:.0f} levels; {share_differing:.2e} of values differ")
    rest = {"gflop_per_image": round(gflop, 3)}
    if args.step_seconds:
        rest["share_of_step"] = round(seconds / args.step_seconds, 4)
        print(f"share of a step: {rest['share_of_step']:.1%}")
    row(
        name="augment_cost",
        config=vars(args),
        value=round(args.batch / seconds, 2),
        unit="images/s",
        baseline=round(args.batch / pillow_seconds, 2),
        ratio=round(pillow_seconds / seconds, 3),
        equal=worst <= 1,
        **rest,
    )


if __name__ == "__main__":
    main()

"""Weak scaling from plans: the same images on every device, more and more devices.

    python -m benchmarks.scaling --config vitl16_in1k --images 64 --strategy hsdp
    python -m benchmarks.scaling --config vit7b16 --images 16 --kind h100 --set model.remat=full
    python -m benchmarks.scaling --kind cpu --sizes 8 16 --save benchmarks/baselines/scaling.json

A JSON line per number of devices. value: modelled images per second and device, uncalibrated;
baseline: that of the fewest devices; bytes, FLOPs and peak are the compiler's and the trace's.
`python -m benchmarks.sharding --check FILE` compares those of a table of --save.
"""

import argparse
from pathlib import Path

from benchmarks import sharding
from benchmarks.rows import row
from dinojax.plan import report as reports
from dinojax.plan.targets import GIB, replaced
from dinojax.sharding import axes

# Kind -> machines of 8 to 4,096 chips, or to the largest there is.
SIZES = {
    "v5e": ("2x4", "4x8", "8x16", "16x16"),
    "v5p": ("2x2x2", "2x4x4", "4x4x8", "8x8x8", "8x16x16", "16x16x16"),
    "v6e": ("2x4", "4x8", "8x16", "16x16"),
    "tpu7x": ("2x2x2", "2x4x4", "4x4x8", "8x8x8", "8x8x16"),
    "h100": ("1x8", "4x8", "16x8", "64x8", "256x8", "512x8"),
    "h200": ("1x8", "4x8", "16x8", "64x8", "256x8", "512x8"),
    "b200": ("1x8", "4x8", "16x8", "64x8", "256x8", "512x8"),
    "cpu": ("8", "16", "32"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tiny", help="a recipe file, or a packaged name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--kind", default="v5p", choices=SIZES)
    parser.add_argument("--sizes", nargs="+", help="of machines; default: 8 to 4,096 chips")
    parser.add_argument("--images", type=int, default=16, help="on each device")
    parser.add_argument("--strategy", default="hsdp", choices=axes.TABLE)
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep bytes, FLOPs and peaks")
    args = parser.parse_args()
    asked = {key: str(value) if key == "save" else value for key, value in vars(args).items()}
    overrides, plans = replaced(args.set, [f"mesh.strategy={args.strategy}"]), []
    first = None
    for size in args.sizes or SIZES[args.kind]:
        target = f"{args.kind}:{size}"
        found = sharding.plan(args.config, target, overrides, args.images)
        asked["target"] = target
        if "error" in found:
            row(name="scaling", config=dict(asked), value=None, unit="refused", why=found["error"])
            continue
        plans.append(found)
        rate = None
        if "memory" in found:
            rate = found["modelled"]["images_per_second"] / found["devices"]
            first = rate if first is None else first
        tell(found, dict(asked), rate, first)
    if args.save:
        sharding.save(args.save, plans)


def tell(plan: dict, asked: dict, rate: float | None, first: float | None) -> None:
    """One line. rate: images per second and device; first: that of the fewest devices."""
    devices = plan["devices"]
    row(
        name="scaling",
        config={**asked, "devices": devices},
        value=rate,
        unit="modelled images/s/device, uncalibrated",
        baseline=first,
        ratio=round(rate / first, 3) if rate and first else None,
        fits=plan["fits"],
        peak_gib=round(plan["memory"]["peak"] / GIB, 3) if "memory" in plan else None,
        flops_per_device=plan["flops"] / devices,
        wire=reports.wire_by_kind(plan),
    )


if __name__ == "__main__":
    main()

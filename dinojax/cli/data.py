"""`dinojax data check | convert | bench | scenes`: data sets, before a run.

No accelerator is touched.
"""

import argparse
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dinojax.cli import crop_sheet, data_scenes
from dinojax.cli.parser import Parser
from dinojax.config import Config, load
from dinojax.data.decode import ReadOptions, WrongChannels
from dinojax.data.example import Source
from dinojax.data.mixture import Mixture, told
from dinojax.data.quarantine import FILE
from dinojax.data.sources import SOURCES, kind_of, open_source, read_options
from dinojax.distributed import cluster
from dinojax.files.drafts import write_json

RECIPE = "vitl16_in1k"  # whose sizes count when no recipe is given

SUMMARY = "check, convert or time a data set"
DATA = """\
Look at a data set before a run. PATH is a folder of images, a manifest (.csv, .parquet), tar
shards in WebDataset layout, ArrayRecord files, a TFDS data set, or Parquet files with images inside
(Hugging Face); `tiles` are the embedded ones. With --source scenes it is a folder of scenes, cut
into tiles, and `data scenes` tells the statistics of their bands.

examples:
  dinojax data check /data/photos --out check/photos
  dinojax data convert /data/photos --out /data/photos.records
  dinojax data bench /data/photos.records --config vitl16_in1k --step-seconds 0.8
"""
CHECK = """\
Read every image once: counts, sizes, channels, unreadable images, exact duplicates, mean and
standard deviation, sides against the recipe's crops, images/s per core. With --out DIR the report
is also written to DIR/report.json, and DIR/crops.png shows what the recipe's networks would see.
Without PATH the recipe's own data are read; of a mixture (data.mixture) every source by itself.

examples:
  dinojax data check /data/photos
  dinojax data check /data/train.csv --config configs/vitl16_in1k.py --out check --processes 8
  dinojax data check --config mixture.py --set data.path=/data
"""
CONVERT = """\
Copy a data set into ArrayRecord shards, which are read in any order at full speed. Images are
copied as they are. A conversion that was stopped continues where it was.

examples:
  dinojax data convert /data/photos --out /data/photos.records
  dinojax data convert /data/shards --source tar --out /data/records --shards 64
"""
BENCH = """\
Images per second of this host: each stage on one core, then the whole loader as the recipe sets it
up. With --step-seconds the verdict says whether the accelerator would wait.

examples:
  dinojax data bench /data/photos --config vitl16_in1k
  dinojax data bench /data/photos --set data.num_workers=8 --step-seconds 0.8
"""


def add_verb(commands: Any, shared: Parser) -> None:
    command, config_options = shared.command, shared.config_options
    commands = shared.group(commands, "data", SUMMARY, DATA)
    check = command(commands, "check", "what is in a data set", CHECK, _check)
    config_options(check, required=False)
    check.add_argument("--out", metavar="DIR", help="folder for report.json and crops.png")
    check.add_argument("--processes", type=_count, default=1, metavar="N", help="default: 1")
    convert = command(commands, "convert", "copy into ArrayRecord", CONVERT, _convert)
    convert.add_argument("--out", metavar="DIR", required=True, help="made if absent")
    convert.add_argument("--shards", type=_count, metavar="N", help="default: of 10,000 images")
    convert.add_argument(
        "--max-bad-share",
        type=_share,
        default=0.001,
        metavar="S",
        help="of files that cannot be read; ten are allowed, 0 = none",
    )
    bench = command(commands, "bench", "images per second of this host", BENCH, _bench)
    config_options(bench, required=False)
    bench.add_argument("--seconds", type=_seconds, default=10.0, help="of each of the two parts")
    bench.add_argument("--step-seconds", type=_seconds, metavar="S", help="of a training step")
    data_scenes.add(commands, command)
    check.set_defaults(usage_error=check.error)
    for parser in (check, convert, bench):
        parser.add_argument(
            "path",
            metavar="PATH",
            nargs="?" if parser is check else None,
            help="of the data; `tiles` for embedded ones",
        )
        parser.add_argument(
            "--source", choices=sorted(SOURCES), help="kind of data; default: what PATH looks like"
        )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return found


def _share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return found


def _open(args: argparse.Namespace, channels: int, options: ReadOptions) -> Source:
    kind = args.source or ("tiles" if args.path == "tiles" else kind_of(args.path))
    path = "" if kind == "tiles" else args.path
    return SOURCES[kind](path=path, channels=channels, key="PATH", options=options)


def _check(args: argparse.Namespace) -> None:
    if args.path is None and (args.config is None or args.source is not None):
        args.usage_error("give PATH, or --config alone for the data of a recipe")
    config = load(args.config or RECIPE, args.set)
    channels = config.image.channels
    out = None if args.out is None else Path(args.out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    spec = (
        None if out is None else crop_sheet.view_spec(config)
    )  # refuses before all images are read
    if args.path is None:
        source = open_source(config.data, channels=channels)
    else:
        source = _open(args, channels, read_options(config.data))
    survey, allowed = _survey(config, args.processes), config.data.max_bad_share
    drawn = _drawn(source, config) if isinstance(source, Mixture) else []
    seed = 0 if out is None else config.seed  # of the crops
    config.check_settings_read(args.set)
    if isinstance(source, Mixture):
        found = {part.name: survey(part.source) for part in source.parts}
        content: dict[str, Any] = {"sources": found}
        for name, seen in found.items():
            print("\n".join([f"== {name}", *_table(seen, allowed)]))
        print("\n".join(["== drawn by the recipe's last step", *drawn]))
    else:
        content = survey(source)
        print("\n".join(_table(content, allowed)))
    if out is not None:
        write_json(out / "report.json", content)
        crop_sheet.draw(out / "crops.png", source, config, spec, seed)
        print(f"{out}: report.json, crops.png")


def _survey(config: Config, processes: int) -> Callable[[Source], dict]:
    from dinojax.data.check import check  # commands import their programs when they run

    crops = config.crops
    sizes = {"crops.global_size": crops.global_size, "crops.local_size": crops.local_size}
    return functools.partial(
        check, box_size=config.data.box_size, crop_sizes=sizes, processes=processes
    )


def _drawn(source: Mixture, config: Config) -> list[str]:
    size = config.batch_size
    position = config.num_steps * size
    return told(source, source.num_drawn(config.seed, position, size))


def _table(found: dict, allowed: float) -> list[str]:
    """The report as lines of text, each with what to do about it. allowed: data.max_bad_share."""
    total, bad = found["images"], found["unreadable"]
    lines = [
        f"images            {total:,}, {found['bytes'] / 2**20:,.1f} MiB",
        *(f"left out          {note}" for note in found["notes"]),
        f"stored as         {_counts(found['stored_as'])}",
        *(f"values            {line}" for line in found["values_told"]),
        f"classes           {_classes(found['classes'])}",
        f"unreadable        {bad:,} ({bad / total:.3%}; data.max_bad_share allows {allowed:.3%})",
    ]
    lines += [f"  {image['name']}: {image['reason']}" for image in found["unreadable_images"][:5]]
    twins = found["duplicates"]
    lines.append(f"duplicates        {twins['superfluous']:,} in {twins['groups']:,} groups")
    lines += [f"  {' = '.join(names)}" for names in twins["names"][:5]]
    for kind, side in found["sides"].items():
        lines.append(
            f"{kind + ' side':17s} {', '.join(f'{n} {v}' for n, v in side.items())} pixels"
        )
    for name, count in found["shorter_than"].items():
        if count:
            lines.append(f"  {count:,} have a short side below {name}: their crops are enlarged")
    lines.append(f"  {found['larger_than_box']:,} are scaled down to data.box_size")
    for name in ("mean", "std"):
        values = ", ".join(f"{value:.4f}" for value in found[name])
        lines.append(f"{name:17s} --set 'image.{name}=[{values}]'")
    return [*lines, f"per core          {found['images_per_second_per_core']:,.0f} images/s"]


def _counts(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "nothing readable"


def _classes(classes: dict) -> str:
    if not classes["number"]:
        return "none"
    counts = ", ".join(f"{name} {count:,}" for name, count in classes["images_per_class"].items())
    return f"{classes['number']:,} (images of one: {counts})"


def _convert(args: argparse.Namespace) -> None:
    cluster.refuse_many("data convert")
    from dinojax.data.convert import convert

    source = _any_channels(args)
    for note in source.notes:
        print(note)
    bad = convert(source, args.out, num_shards=args.shards, max_bad_share=args.max_bad_share)
    lost = f" ({len(bad):,} cannot be read and are listed in {FILE})" if bad else ""
    told = f"{args.out}: {len(source):,} images{lost}"
    print(f"{told}; train on them with --set data.source=arrayrecord")


def _any_channels(args: argparse.Namespace) -> Source:
    """The source of a conversion: nothing is decoded but the first images, to know an image."""
    options = ReadOptions(value_range=(0.0, 1.0), max_pixels=2**31)  # whatever it will be
    try:
        return _open(args, 3, options)
    except WrongChannels as error:
        return _open(args, error.found, options)


def _bench(args: argparse.Namespace) -> None:
    import time

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # grain imports jax
    from dinojax.data.bench import loader_rate, stage_rates, verdict

    config = load(args.config or RECIPE, args.set)
    data = config.data
    source = _open(args, config.image.channels, read_options(data))
    batch_size, box_size = config.batch_size, data.box_size
    loader = f"data.num_workers={data.num_workers}, num_threads={data.num_threads}"
    loader += f", prefetch={data.prefetch}"
    config.check_settings_read(args.set)
    rates = stage_rates(
        source,
        box_size=box_size,
        batch_size=batch_size,
        seconds=args.seconds,
        clock=time.perf_counter,
    )
    print(f"images/s of one core, {len(source):,} images, box of {box_size} pixels")
    for stage, rate in rates.items():
        print(f"  {stage:8s} {rate:10,.0f}")
    rate = loader_rate(source, data=data, batch_size=batch_size, seconds=args.seconds)
    print(f"images/s of the loader with {loader}\n  {'loader':8s} {rate:10,.0f}")
    print(verdict(rate, batch_size=batch_size, step_seconds=args.step_seconds))

"""The commands of weights: export, import and embed."""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence

from dinojax.cli.parser import Parser, bands, numbers
from dinojax.configs.keys.images import MEANS, STDS

EXPORT = """\
Write a backbone for another library, with proof that it is the same network: OUT receives the
weights, the library's own config, provenance.json and parity.json. Nothing is written if the
library computes other features, or its format cannot hold the network. stablehlo is a program that
runs with jax alone, on CPU, GPU and TPU, for any number of images of the training size; dinotxt are
both sides of a text stage in the released names of dino.txt.

examples:
  dinojax export --run runs/vitl16 --format hf --out vitl16-hf
  dinojax export --run runs/vit7b --stage pretrain --format hf --out vit7b-pretrain-hf
  dinojax export --run runs/vitl16 --format timm --dtype bfloat16 --out vitl16-timm
  dinojax export --weights dinov3_vits16.pth --format hf --set rope.periods_dtype=float32 \\
      --out vits16-hf
"""
IMPORT = """\
Read weights of any format, tensor by tensor counted, into our own. Anything missing or unexpected
is an error unless --allow names it.

examples:
  dinojax import --from dinov3_vits16.pth --out vits16
  dinojax import --from vits16-hf --channels 5 --inflate repeat \\
      --mean 0.4,0.4,0.4,0.3,0.3 --std 0.2,0.2,0.2,0.1,0.1 --out vits16-5
"""
EMBED = """\
Features of every image below a folder. OUT receives part-00000.npz (or .parquet) and so on; if it
was killed, the same command continues. Where DATA is one scene (a GeoTIFF, or a raster too large
for an image), OUT receives NAME.tif with a band per channel and a pixel per patch, which lies where
the scene does (docs/satellite.md).

examples:
  dinojax embed --weights vits16 --data images --out features
  dinojax embed --weights runs/vitl16 --data images --outputs cls,patches,layer=-4 --out features
  dinojax embed --weights runs/sat --data scene.tif --out features --value-range 0,3000
"""

FORMATS = ("meta", "hf", "timm", "stablehlo", "dinotxt")

Program = Callable[[str], Callable]


def add_verb(commands, parser: Parser) -> None:
    command, program = parser.command, parser.program
    _export(command(commands, "export", "weights for PyTorch", EXPORT, _run_export(program)))
    _import(command(commands, "import", "weights of others to ours", IMPORT, _run_import(program)))
    _embed(command(commands, "embed", "features of a folder", EMBED, _run_embed(program)))


def _export(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="DIR", help="run directory of a training run")
    source.add_argument("--weights", metavar="PATH", help="file or folder of any format")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--with-heads", action="store_true", help="also write heads.safetensors")
    parser.add_argument("--network", choices=("ema", "student"), default="ema", help="of a run")
    parser.add_argument("--stage", metavar="NAME", help="of a run; default: the one it is at")
    parser.add_argument("--step", type=int, metavar="N", help="of a run; default: the last")
    _prefix(parser)
    parser.add_argument("--license", metavar="NAME", help="for the model card, such as cc-by-4.0")
    parser.add_argument("--no-certificate", action="store_true", help="do not run the networks")
    parser.add_argument(
        "--tolerance", type=float, default=2e-5, help="largest relative difference of a feature"
    )
    _overrides(parser)


def _run_export(program: Program):
    def run(args: argparse.Namespace) -> None:
        if args.format == "dinotxt":
            if args.run is None:
                raise ValueError("--format dinotxt writes both sides of a text stage; give --run.")
            program("export dinotxt")(args.run, args.out, stage=args.stage, step=args.step)
            return
        program("export")(
            run=args.run,
            weights=args.weights,
            out=args.out,
            format=args.format,
            dtype=args.dtype,
            with_heads=args.with_heads,
            network=args.network,
            stage=args.stage,
            step=args.step,
            prefix=args.prefix,
            overrides=args.set,
            certify=not args.no_certificate,
            tolerance=args.tolerance,
            license=args.license,
        )

    return run


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", metavar="PATH", required=True, dest="path", help="file or folder")
    parser.set_defaults(path_option="--from")
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder")
    parser.add_argument("--format", choices=("meta", "hf", "timm", "dinojax"), help="if not told")
    _prefix(parser)
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="names that may be missing or unexpected; may be given many times",
    )
    parser.add_argument("--channels", type=int, metavar="C", help="of the images to come")
    parser.add_argument(
        "--inflate", metavar="HOW", help="repeat | mean | zero | a list of old channels, -1 = none"
    )
    for name, known in (("mean", MEANS), ("std", STDS)):
        parser.add_argument(
            f"--{name}",
            type=functools.partial(_statistics, known),
            metavar="VALUES",
            help=f"per channel, of values in 0..1, or one of {', '.join(known)}",
        )
    _overrides(parser)


def _statistics(known: Mapping[str, Sequence[float]], text: str) -> Sequence[float]:
    try:
        return known[text] if text in known else numbers(text)
    except ValueError:
        told = f"{text}: give numbers with commas between, or one of {', '.join(known)}"
        raise argparse.ArgumentTypeError(told) from None


def _run_import(program: Program):
    def run(args: argparse.Namespace) -> None:
        program("import")(
            args.path,
            args.out,
            format=args.format,
            overrides=args.set,
            allow=args.allow,
            prefix=args.prefix,
            channels=args.channels,
            inflate=args.inflate,
            mean=args.mean,
            std=args.std,
        )

    return run


def _embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="PATH", required=True, help="file, folder or run")
    parser.add_argument("--data", metavar="PATH", required=True, help="images, in any kind")
    parser.add_argument("--out", metavar="DIR", required=True, help="new, or one to continue")
    parser.add_argument(
        "--outputs",
        help="cls (default), registers, patches, layer=N; with commas between. Of a scene one: "
        "patches (default) or layer=N",
    )
    parser.add_argument("--format", choices=("npz", "parquet"), default="npz")
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass")
    parser.add_argument("--part-size", type=int, default=4096, help="images per file")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.001,
        metavar="S",
        help="of images that cannot be read and are left out; ten are allowed, 0 = none",
    )
    parser.add_argument(
        "--value-range",
        type=numbers,
        metavar="LOW,HIGH",
        help="stored values above 8 bits that become 0 and 255; of all channels, or of each",
    )
    parser.add_argument("--max-pixels", type=int, metavar="N", help="of an image, by its header")
    parser.add_argument(
        "--window", type=int, metavar="N", help="pixels, side of a scene's windows; 32 patches"
    )
    parser.add_argument(
        "--bands", type=bands, default=(), metavar="N,N", help="of a scene, from 1 on; default: all"
    )
    _prefix(parser)
    _overrides(parser)


def _run_embed(program: Program):
    def run(args: argparse.Namespace) -> None:
        program("embed")(
            args.weights,
            args.data,
            args.out,
            outputs=args.outputs,
            format=args.format,
            batch_size=args.batch_size,
            part_size=args.part_size,
            max_bad_share=args.max_bad_share,
            value_range=args.value_range,
            max_pixels=args.max_pixels,
            window=args.window,
            bands=args.bands,
            prefix=args.prefix,
            overrides=args.set,
        )

    return run


def _prefix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prefix",
        default="",
        metavar="NAMES.",
        help="of a file with several networks: what the names of the one that is meant begin with",
    )


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="what the backbone is, where the file does not tell, such as num_heads=6",
    )

"""Damaged images, mutated configs, data sets, weights and run folders, through what reads them.

    python -m tests.programs.fuzz --images 1000 --configs 500 --files 500 --weights 500 --runs 200

Every image gives pixels or a DecodeError that names it; every config (recipe and --set; YAML for
`config migrate`; the text of a recipe) resolves to legal values or is refused by an error that
names the key or file; a data set (fuzz_files.py) gives all its images, tells which it leaves out,
or is refused by name; every file of weights gives the network that was saved or is refused by an
error that names it; every run folder is read or refused by the name of the file, within 20 s and
1 GiB. Configurations of the preprocessing of transformers and timm give their pixels here, or are
refused by the field (--preprocess, which needs both). Nothing else may happen. The last line is
JSON; exit code 1 with any fault.
"""

import argparse
import json
import sys
import time
import warnings

from dinojax.runs.scalars import duration
from tests.programs import (
    fuzz_configs,
    fuzz_files,
    fuzz_images,
    fuzz_preprocess,
    fuzz_runs,
    fuzz_texts,
    fuzz_weights,
)


def teller(what: str, count: int):
    """Prints faults as they are found, and twenty times how far it is."""
    began, told = time.monotonic(), 0

    def tell(done: int, faults: list[str]) -> None:
        nonlocal told
        for fault in faults[told:]:
            print(f"FAULT {fault}", flush=True)
        told = len(faults)
        if done % max(1, count // 20) == 0:
            left = (time.monotonic() - began) / done * (count - done)
            print(f"{done}/{count} {what}  {duration(left)} left", file=sys.stderr)

    return tell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--configs", type=int, default=500)
    parser.add_argument("--files", type=int, default=0, help="mutated data sets")
    parser.add_argument("--weights", type=int, default=0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--preprocess", type=int, default=0, help="needs transformers and timm")
    parser.add_argument("--trace", type=int, default=20, help="accepted configs to trace a step of")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns of odd metadata; a run goes on
    images = fuzz_images.fuzz(args.seed, args.images, progress=teller("images", args.images))
    configs = fuzz_configs.fuzz(
        args.seed, args.configs, num_traced=args.trace, progress=teller("configs", args.configs)
    )
    files = fuzz_files.fuzz(args.seed, args.files, progress=teller("data sets", args.files))
    weights = fuzz_weights.fuzz(args.seed, args.weights, progress=teller("weights", args.weights))
    texts = fuzz_texts.fuzz(args.seed, args.configs, progress=teller("texts", args.configs))
    runs = fuzz_runs.fuzz(args.seed, args.runs, progress=teller("runs", args.runs))
    parts = {"images": images, "configs": configs, "texts": texts}
    parts |= {"files": files, "weights": weights, "runs": runs}
    if args.preprocess:
        tell = teller("configurations", args.preprocess)
        parts["preprocess"] = fuzz_preprocess.fuzz(args.seed, args.preprocess, progress=tell)
    faults = [fault for part in parts.values() for fault in part["faults"]]
    row = {"name": "fuzz", "seed": args.seed, **parts}
    print(json.dumps({**row, "ok": not faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

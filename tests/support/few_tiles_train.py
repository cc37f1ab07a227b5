"""`dinojax train` on few tiles, for tests that start several processes of one run.

The environment gives ORDER, the beginning of the names of files that collect the image ids of every
step (one per process), and may give ACT, "PROCESS STEP SIGNAL": that process sends itself a signal
before that step. Nothing else is changed.
"""

import json
import os
import signal
import sys

from dinojax.data import tiles

SPLITS = {"train": 64, "bank": 48, "val": 32, "test": 32}


def main() -> int:
    from dinojax.cli import main as cli
    from dinojax.distributed import process_group
    from dinojax.monitor.autopsy import Autopsy

    tiles.SPLITS = SPLITS
    keep, told = Autopsy.keep, os.environ.get("ACT")

    def watched(self, number, batch):
        index = process_group.current().index
        if "ids" in batch:  # of a student apart others have the images
            with open(f"{os.environ['ORDER']}.{index}", "a") as file:
                file.write(json.dumps({"step": number, "ids": batch["ids"].tolist()}) + "\n")
        if told is not None:
            process, step, name = told.split()
            if (int(process), int(step)) == (index, number):
                os.kill(os.getpid(), signal.Signals[name])
        keep(self, number, batch)

    Autopsy.keep = watched
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

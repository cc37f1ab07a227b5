"""Weights in a file, for a stage to start from."""

from pathlib import Path

from dinojax.checkpoint.manager import Checkpoints


def saved(directory: Path, stage: str, step: int, part: dict) -> dict:
    checkpoints = Checkpoints(
        directory / "checkpoints" / stage, keep_last=1, keep_every=None, read_only=True
    )
    try:
        return checkpoints.restore_parts(part, step)
    finally:
        checkpoints.close()

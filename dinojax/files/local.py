"""Paths that must lie on a file system of this host, where a URL would name a folder `gs:`."""

import re
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://?")


def is_url(path: str | Path) -> bool:
    """Whether it begins with a scheme, such as gs:// or s3://."""
    found = _URL.match(str(path))
    # pathlib leaves one slash of two; in text random:/path/recipe.py is a teacher's.
    return found is not None and (isinstance(path, Path) or found[0].endswith("//"))


def refuse_url(path: str | Path, option: str) -> None:
    """Raise ValueError for a URL; option: where it was given, such as --out."""
    if is_url(path):
        raise ValueError(
            f"{option} {path}: a URL does not work here; give a path of a mounted file system (a "
            "bucket can be mounted: gcsfuse, mountpoint-s3), or copy the files there and back."
        )

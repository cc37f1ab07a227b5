"""What the processes of a run know and nobody else does: so that they take orders of each other.

It is DINOJAX_SECRET, where that is set, the same for all. Else it is in a file of the run
directory, which all see and only its owner reads; the process that comes first makes it.
"""

import os
import secrets
import stat
import time
from pathlib import Path

VARIABLE = "DINOJAX_SECRET"
FILE = "lock.key"
VISIBLE = 30.0  # seconds until what another host wrote must be there
LENGTH = 64  # characters of the file, and the end of its line


def of_run(directory: Path) -> bytes:
    """The secret of a run. Raises ValueError for a directory that is none, OSError for storage."""
    if told := os.environ.get(VARIABLE):
        return told.encode()
    if _is_foreign(directory):
        raise ValueError(f"{directory} is not empty and no run directory; use another --run.")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return _read(path)
    with os.fdopen(number, "wb") as file:
        text = secrets.token_hex(LENGTH // 2).encode()
        file.write(text + b"\n")
    return text


def _read(path: Path) -> bytes:
    """Of the process that came first, as soon as it is whole."""
    deadline = time.monotonic() + VISIBLE
    while True:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(number, "rb") as file:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                raise ValueError(f"{path} can be read by others than its owner; remove it.")
            text = file.read(LENGTH + 1)
        if len(text) == LENGTH + 1:
            return text.rstrip(b"\n")
        if time.monotonic() > deadline:
            raise ValueError(f"{path} is not whole; remove it, then start all processes again.")
        time.sleep(0.2)


def _is_foreign(directory: Path) -> bool:
    """Whether it holds files, and none by which a run is known."""
    names = [entry.name for entry in directory.iterdir()] if directory.exists() else []
    known = ("lock", "config.json", "family.json")
    return any(not name.endswith(".draft") for name in names) and not any(
        name.startswith(known) for name in names
    )

"""Files and folders that appear whole or not at all, under drafts that no other process opens.

A run directory may come from somebody else, and two processes may write into one. So a draft has
the name of its process and is opened exclusively; what is appended to must be a file of its own.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SUFFIX = ".draft"  # the last of every draft's name
_OWNER = re.compile(r"\.(?P<host>[^.]*)-(?P<pid>\d+)-[0-9a-f]{8}\.draft")


class NotOurs(ValueError):
    """A link, folder or device where a run has a file of its own; the message names it."""


@contextlib.contextmanager
def draft(path: str | os.PathLike[str], *, suffix: str = SUFFIX) -> Iterator[Path]:
    """An empty file beside `path`, which takes its name at the end; removed if that is not reached.

    For writers that want a name; others take `open_new`. suffix: where readers go by it.
    """
    path = Path(path)
    made = _beside(path, suffix)
    os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield made
        _sync(made)
        os.replace(made, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            made.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def open_new(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The bytes of a file that takes its name when all are on disk; a failure leaves nothing."""
    with draft(path) as made, open(made, "wb") as file:
        yield file


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """The file, whole or not at all."""
    with open_new(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """The same in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """The same as JSON, for people as well."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but drafts, which a killed process may have left."""
    return all(entry.name.endswith(SUFFIX) for entry in folder.iterdir())


@contextlib.contextmanager
def draft_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside `path`, which takes its name at the end; `path` is absent or empty.

    It is removed if that is not reached.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = _beside(path, SUFFIX)
    made.mkdir()
    try:
        yield made
        os.replace(made, path)  # onto an empty folder as well
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def set_aside(path: Path, why: str) -> Path:
    """Rename to NAME.why, or NAME.why.2 and so on where that is taken; the new name."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.{why}" + (f".{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            try:
                path.rename(aside)
                return aside
            except OSError as error:  # taken in between
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
        number += 1


def open_append(path: str | os.PathLike[str], *, private: bool = False) -> IO[str]:
    """A text file to append to (and read), made if absent. Raises NotOurs for what is no file.

    private: readable by its owner alone, where it is made here.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        number = os.open(path, flags, 0o600 if private else 0o666)
    except OSError as error:
        refuse_other(path)
        raise error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise NotOurs(_told(path, "no regular file"))
    return os.fdopen(number, "a+", encoding="utf-8")


def refuse_other(path: str | os.PathLike[str]) -> None:
    """Raise NotOurs if there is something at `path` that is no file of its own."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise NotOurs(_told(path, "a link" if stat.S_ISLNK(mode) else "no regular file"))


def _told(path: str | os.PathLike[str], what: str) -> str:
    return (
        f"{path} is {what}, which a run does not make and does not write to; remove it, or use "
        "another --run."
    )


def _beside(path: Path, suffix: str) -> Path:
    """A name for a draft, after what killed processes of this host have left is removed."""
    host = socket.gethostname().split(".")[0]
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if not entry.name.startswith(f"{path.name}."):
                continue
            owner = _OWNER.fullmatch(entry.name.removeprefix(path.name))
            if owner and owner["host"] == host and not _is_alive(int(owner["pid"])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
    return path.with_name(f"{path.name}.{host}-{os.getpid()}-{secrets.token_hex(4)}{suffix}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(number)
    finally:
        os.close(number)

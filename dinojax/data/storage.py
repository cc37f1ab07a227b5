"""Bytes from local paths and, through fsspec (the extra `remote`), from URLs such as gs:// and s3://.

Nothing stays open between calls, so that names alone travel to worker processes.
"""

import importlib
import os
import stat

MAX_BYTES = 2**29  # of one image file: more than data.max_pixels of any kind take


LOCAL = "file://"


def shown(name: str) -> str:
    """A file name as text that can be printed: what is no UTF-8 in it is escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def is_url(path: str) -> bool:
    return "://" in path


def read_bytes(path: str, *, max_bytes: int | None = None) -> bytes:
    """The whole file. Raises OSError naming the path, whatever the storage behind it raises."""
    if not is_url(path):
        return read_file(path, max_bytes=max_bytes)
    if path.startswith(LOCAL):
        return read_file(path.removeprefix(LOCAL), max_bytes=max_bytes)
    try:
        with importlib.import_module("fsspec").open(path, "rb") as file:
            if max_bytes is not None and (getattr(file, "size", None) or 0) > max_bytes:
                raise OSError(
                    f"it has {file.size:,} bytes, and an image file {max_bytes:,} at most"
                )
            data = file.read(-1 if max_bytes is None else max_bytes + 1)
    except Exception as error:  # each file system of fsspec has errors of its own
        raise OSError(f"cannot read {path}: {error or type(error).__name__}") from error
    _check_length(path, len(data), max_bytes)
    return data


def read_file(path: str, *, max_bytes: int | None = MAX_BYTES) -> bytes:
    """A local file of at most `max_bytes`; OSError for what is no regular file, which may hang."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(
                f"cannot read {shown(path)}: it is {_kind(status.st_mode)}, not a regular file."
            )
        _check_length(path, status.st_size, max_bytes)
        with open(path, "rb") as file:
            return file.read()
    except ValueError as error:  # a name that the system cannot have
        raise OSError(f"cannot read {path!r}: {error}.") from error


def _check_length(path: str, length: int, max_bytes: int | None) -> None:
    if max_bytes is not None and length > max_bytes:
        raise OSError(
            f"cannot read {shown(path)}: it has {length:,} bytes{' or more' * is_url(path)}, and "
            f"an image file has {max_bytes:,} at most."
        )


def _kind(mode: int) -> str:
    kinds = {
        "a folder": stat.S_ISDIR,
        "a pipe": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
        "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    }
    return next((name for name, is_kind in kinds.items() if is_kind(mode)), "something else")


def check_urls(paths: list[str], where: str) -> None:
    """Raises ModuleNotFoundError or ValueError, naming `where`, if a kind of URL has no reader."""
    for protocol in sorted({path.split("://", 1)[0] for path in paths if is_url(path)}):
        try:
            fsspec = importlib.import_module("fsspec")
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"{where} has {protocol}:// URLs, which need the package fsspec; "
                "run: pip install 'dinojax[remote]'"
            ) from None
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{where} has {protocol}:// URLs: {error}") from None

"""Bytes from local paths and, through fsspec (the extra `remote`), from URLs such as gs:// and s3://.

Nothing stays open between calls, so that names alone travel to worker processes.
"""

import importlib


def is_url(path: str) -> bool:
    return "://" in path


def read_bytes(path: str) -> bytes:
    """The whole file. Raises OSError naming the path, whatever the storage behind it raises."""
    if not is_url(path):
        with open(path, "rb") as file:
            return file.read()
    try:
        with importlib.import_module("fsspec").open(path, "rb") as file:
            return file.read()
    except Exception as error:  # each file system of fsspec has errors of its own
        raise OSError(f"cannot read {path}: {error or type(error).__name__}") from error


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

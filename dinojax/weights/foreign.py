"""What a file is that should hold weights and does not, told from its first bytes."""

import struct
import zipfile
from pathlib import Path

LFS = b"version https://git-lfs"
ZIP = b"PK\x03\x04"


def refuse(path: Path) -> None:
    """Raise ValueError or FileNotFoundError, each with its own sentence, for what no reader takes.

    path: named .safetensors, .pth, .pt or .bin.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder under the name of a file of weights.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_file():
        raise ValueError(f"{path} is no regular file (a pipe, a socket or a device).")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
    if not size:
        raise ValueError(f"{path} is empty (0 bytes): a copy or download that did not begin.")
    if head.startswith(LFS):
        raise ValueError(
            f"{path} is a pointer of Git LFS, some lines of text in place of the weights; fetch "
            "them with `git lfs pull`."
        )
    if not any(head):
        raise ValueError(f"{path} begins with zeros: a copy or download that was not completed.")
    safetensors = path.suffix == ".safetensors"
    if is_safetensors(head, size):
        if not safetensors:
            raise ValueError(f"{path} is a safetensors file; rename it to .safetensors.")
    elif head.startswith((ZIP, b"\x80\x02")) and safetensors:
        raise ValueError(f"{path} is a PyTorch file; rename it to .pth.")
    elif (text := _text(head)) is not None:
        raise ValueError(f"{path} holds text, no weights: {text!r}.")
    if head.startswith(ZIP) and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off: the directory at the end of a PyTorch file is gone.")


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file begins with a header of safetensors, as long as it says or longer."""
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size


def _text(head: bytes) -> str | None:
    """The beginning of a text, or None where the bytes are none."""
    try:
        text = head[:64].decode()
    except UnicodeDecodeError:
        return None
    text = " ".join(text.split())
    return text if text.isprintable() else None

"""Messages on a connection: a line of JSON each, of a size and within a time."""

import hmac
import json
import socket
import time
from typing import Any

MAX_HELLO = 1 << 16  # bytes of a message of somebody who has not shown yet that it is one of us
MAX_FRAME = 1 << 26  # of one of us: rows of metrics, configs and names of all processes


def send(end: socket.socket, message: dict) -> None:
    end.sendall((json.dumps(message) + "\n").encode())


def receive(end: socket.socket, *, deadline: float, limit: int = MAX_HELLO) -> dict:
    """One message, byte by byte: what follows it belongs to the reader.

    deadline: by time.monotonic, for all of it. Raises OSError or ValueError.
    """
    text = bytearray()
    while not text.endswith(b"\n"):
        end.settimeout(max(deadline - time.monotonic(), 0.01))
        part = end.recv(1)
        if not part:
            raise OSError("the connection was closed")
        text += part
        if len(text) > limit or time.monotonic() > deadline:
            raise ValueError("no message of dinojax")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no message of dinojax")
    return found


def proof(secret: bytes, *said: Any) -> str:
    """Shows that its maker knows the secret; said: what it vouches for, a number used once too."""
    return hmac.new(secret, json.dumps(said).encode(), "sha256").hexdigest()


def is_proof(found: Any, secret: bytes, *said: Any) -> bool:
    return isinstance(found, str) and hmac.compare_digest(
        found.encode(), proof(secret, *said).encode()
    )

"""One process per run directory: a lock that the kernel releases when its process ends, however.

Advisory (flock) on RUN/lock, which also says who holds it. Where the file system has no locks the
run goes on, and says so.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from dinojax.data import fields
from dinojax.files import full
from dinojax.files.drafts import open_append

log = logging.getLogger(__name__)

FILE = "lock"
# What flock answers where it does not work, such as on some network and fuse file systems.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Locked(ValueError):
    """Another process works in the run directory; the message says which."""


@contextlib.contextmanager
def held(directory: Path, *, process: int = 0) -> Iterator[None]:
    """Hold the lock of a run directory, which exists; process: of the job, each has its own lock.

    Raises Locked if another process holds it, OSError if the directory cannot be written to.
    """
    path = directory / (f"{FILE}.{process}" if process else FILE)
    try:
        file = open_append(path)
    except OSError as error:
        if full.cause(error) is not None:  # has a sentence of its own
            raise OSError(error.errno, error.strerror, str(directory)) from error
        raise OSError(
            error.errno, f"{directory} cannot be written to ({error.strerror}); use another --run"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"{directory} is in use by {_holder(path)}. Wait until it ends, stop it "
                "(`kill -TERM` saves first), or use another --run."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning(
                "%s: no locks on this file system (%s), so that a second process is not noticed; "
                "start only one",
                path,
                error.strerror,
            )
            yield
            return
        file.truncate(0)
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write(json.dumps({**me, "since": since}) + "\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # while it is still ours


def holder(directory: Path) -> str | None:
    """In words, the process that works in a run directory now; None where none is known to.

    What a killed process wrote into the file stands there, but its lock is gone.
    """
    path = directory / FILE
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:  # not as a file object, which a folder of that name cannot become
        status = os.fstat(number)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(path)
    except OSError:  # no locks here, so that nothing is written there
        return None
    finally:
        os.close(number)
    return None


def _holder(path: Path) -> str:
    """In words, the process that says in the file that it holds the lock."""
    try:
        who = fields.read(path)
        pid = fields.field(who, "pid", int, where=path)
        host, since = (fields.field(who, name, str, where=path) for name in ("host", "since"))
        return f"process {pid} on {host} since {since}"
    except (OSError, ValueError):  # it has not written that yet
        return "another process"

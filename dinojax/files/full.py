"""Storage that takes no more: which errors say so, and the one sentence for all of them."""

import errno
import os

# A full disk, a quota, a disk mounted for reading, a limit on the size of files.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
WAY_ON = "Make room or mend the storage, then run the same command again."


def cause(error: BaseException | None) -> BaseException | None:
    """The error, of this one and those it came from, that says that storage takes no more.

    What is raised while files are closed after a full disk has that one as its context. Libraries
    written in C++ tell it in text alone.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        if not isinstance(error, OSError) and any(os.strerror(n) in str(error) for n in FULL):
            return error
        error = error.__cause__ or error.__context__
    return None


def told(error: BaseException, where: str | os.PathLike | None = None) -> str:
    """The sentence. where: what cannot be written to, if the error does not name it."""
    named = getattr(error, "filename", None) or where
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:300]
    return f"{named or 'a file'} cannot be written to ({reason}). {WAY_ON}"

"""A student whose devices belong to other processes."""

from dinojax.train.stage import Run
from dinojax.train.trainer import StudentFailed


class RemoteStudent:
    """A student of whose devices this process has none: others teach it, here it is counted."""

    is_here = has_ended = is_put_off = False

    def __init__(self, name: str, run: Run, number: int):
        """number: of steps it has done."""
        self.name, self.run, self.number = name, run, number

    def learn(self, *_) -> None:
        self.number += 1

    def finish(self, seconds: float) -> None:
        """Nothing; so are all below."""

    def compile(self) -> None: ...
    def wait(self) -> None: ...
    def keep_up(self, position: int, waited: float, *, asked: bool) -> None: ...
    def flush(self) -> None: ...
    def evaluate(self) -> None: ...
    def save(self, position: int) -> None: ...

    def failed(self, error: Exception) -> StudentFailed:
        raise AssertionError("it does nothing that could fail")

"""A student whose devices belong to other processes."""

from dinojax.train.stage import Run
from dinojax.train.trainer import StudentFailed


class RemoteStudent:
    """A student of whose devices this process has none: others teach it, here it is counted."""

    is_here = has_failed = is_put_off = False
    last_row = None

    def __init__(self, name: str, run: Run, number: int, is_over: bool):
        """number: of steps it has done."""
        self.name, self.run, self.number, self.is_over = name, run, number, is_over

    def step(self, *_) -> None:
        self.number += 1
        self.is_over = self.is_over or self.number >= self.run.num_steps

    def compile(self) -> None:
        """Nothing; so are all below."""

    def wait(self) -> None: ...
    def after_step(self, *, waited: float, save: bool) -> None: ...
    def evaluate(self) -> None: ...
    def save_now(self) -> None: ...
    def end(self) -> None: ...
    def finish(self) -> None: ...

    def failed(self, error: Exception) -> StudentFailed:
        raise AssertionError("it does nothing that could fail")

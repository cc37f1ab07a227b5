"""A process that is waited for: who waits is told what it does, and for how long already."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from dinojax.runs.scalars import CLEAR_LINE, duration

EVERY = (1.0, 30.0)  # seconds between lines on a terminal, where one is rewritten, and elsewhere


def run(
    command: Sequence[str], *, environment: Mapping[str, str], timeout: float, doing: str
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command; stderr of this process says how long it takes.

    doing: what it does, such as "compiling for cpu:8". Raises subprocess.TimeoutExpired, and ends
    the process, after `timeout` seconds.
    """
    began, terminal = time.monotonic(), sys.stderr.isatty()
    every, told = EVERY[0 if terminal else 1], False
    with subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while True:
                left = began + timeout - time.monotonic()
                try:
                    out, error = process.communicate(timeout=max(min(every, left), 0.0))
                    return process.returncode, out, error
                except subprocess.TimeoutExpired:
                    if left <= every:
                        raise
                line = f"{doing}, {duration(time.monotonic() - began)}"
                print(
                    CLEAR_LINE + line if terminal else line,
                    end="" if terminal else "\n",
                    file=sys.stderr,
                    flush=True,
                )
                told = True
        except BaseException:
            process.kill()
            raise
        finally:
            if terminal and told:
                print(CLEAR_LINE, end="", file=sys.stderr, flush=True)

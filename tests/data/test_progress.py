"""The line of long passes: what it counts, how often it appears, the time left."""

import io

from dinojax.data.progress import Progress


def test_speed_and_time_left_ignore_what_an_earlier_call_did():
    stream, now = io.StringIO(), [0.0]
    progress = Progress("copied", 100, stream=stream, seconds=10, clock=lambda: now[0])
    progress.skip(50)
    for seconds in (5.0, 10.0, 15.0, 20.0):
        now[0] = seconds
        progress.add(10)
    assert stream.getvalue().splitlines() == [
        "copied 70/100  2 images/s  15 s left",
        "copied 90/100  2 images/s  5 s left",
    ]
    progress.add(10)
    assert stream.getvalue().splitlines()[-1].startswith("copied 100/100")


def test_a_terminal_keeps_one_line():
    stream = io.StringIO()
    stream.isatty = lambda: True
    times = iter(range(10))
    progress = Progress("copied", 2, stream=stream, clock=lambda: float(next(times)))
    progress.add()
    progress.add()
    assert stream.getvalue().count("\r\x1b[K") == 2 and stream.getvalue().count("\n") == 1

"""How much more memory this process held at once since a moment, whatever it held before."""

from pathlib import Path

_RESETS_PEAK = "5"  # proc(5), /proc/PID/clear_refs


def begin() -> int:
    """Resident bytes now; from here on `grown` counts."""
    Path("/proc/self/clear_refs").write_text(_RESETS_PEAK)
    return _bytes("VmRSS")


def grown(beginning: int) -> int:
    """Most bytes resident at once since `begin`, above what it returned."""
    return max(0, _bytes("VmHWM") - beginning)


def _bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(field + ":"))
    return int(kib) * 1024

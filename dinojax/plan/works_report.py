"""Plans of programs that run many times, as people read them."""

from typing import Any

from dinojax.plan.targets import GIB


def table(found: dict[str, Any]) -> list[str]:
    """A line for each program; the closed form stands behind the slash."""
    heads = ["step", "program", "runs", "TFLOP/device", "peak GiB", "fits", "sent", "read/host"]
    heads += ["to a device", "host GiB", "time*", "held up by*"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in found["rows"]:
        form, runs = row["form"], row["runs"]
        compiled = "flops" in row
        each = row["devices"]
        cells = [
            row["step"],
            row["what"],
            f"{runs:,.0f}",
            f"{_number(row['flops'] / each)} / {_number(form['flops'] / each)}"
            if compiled
            else "-",
            f"{_peak(row)} / {form['peak'] / GIB:.3g}" if compiled else "-",
            ("yes" if row["fits"] else "no") if compiled else "-",
            f"{size(row['sent'])} / {size(form['sent'])}" if row.get("sent") else "-",
            size(row["read"]) if row["read"] else "-",
            size(row["copied"]) if row["copied"] else "-",
            f"{row['host'] / GIB:.3g}" if row["host"] else "-",
            duration(row["seconds"]) if "seconds" in row else "-",
            row["bound"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def totals(found: dict[str, Any]) -> list[str]:
    """The time of each step and of all; what does not fit is named and has none."""
    rows, lines = found["rows"], []
    for step in dict.fromkeys(row["step"] for row in rows):
        own = [row for row in rows if row["step"] == step]
        bad = [row["what"] for row in own if not row["fits"]]
        seconds = sum(row.get("seconds", 0.0) for row in own)
        told = f"does not fit: {'; '.join(bad)}" if bad else f"{duration(seconds)}*"
        timed = any("seconds" in row for row in own)
        lines.append(f"  {step:12s} {told if timed else 'on the host alone'}")
    if all(row["fits"] for row in rows):
        total = sum(row.get("seconds", 0.0) for row in rows)
        hours = total / 3600 * found["devices"]
        lines.append(f"  {'all':12s} {duration(total)}*, {hours:,.4g} device hours")
    return lines


def notes(found: dict[str, Any]) -> list[str]:
    """What the numbers are."""
    usable = found["usable"]
    room = f" A device has {usable / GIB:.1f} GiB." if usable else ""
    return [
        "TFLOP, peak and bytes sent are of one device and one run, from the compiled program, and "
        f"in closed form; bytes read, copied and the time are of all runs.{room}",
        f"*{found['note']}.",
    ]


def size(number: float) -> str:
    """Bytes in the unit that suits."""
    for unit, one in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= one:
            return f"{number / one:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """A time in the unit that suits."""
    for unit, one in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * one:
            return f"{seconds / one:.3g} {unit}"
    return f"{seconds:.3g} s"


def _number(flops: float) -> str:
    return f"{flops / 1e12:.3g}"


def _peak(row: dict[str, Any]) -> str:
    return f"{row['memory']['peak'] / GIB:.3g}" if "memory" in row else row["out_of_memory"]

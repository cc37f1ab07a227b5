"""Targets as people write them in the one form KIND:SIZES: `v5e-64`, `v5p-128`, `a100:8`, `8xh100`.

Google names slices of v5e and v6e by chips, and those of v5p by TensorCores, of which a chip has
two (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e).
"""

import re

# Kind -> number in the name of a slice -> chips along each side.
FLAT = {
    **{1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"},
    **{128: "8x16", 256: "16x16"},
}
SLICES: dict[str, dict[int, str]] = {
    "v5e": FLAT,
    "v6e": FLAT,
    "v5p": {
        **{8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
        **{512: "4x8x8", 1024: "8x8x8", 2048: "8x8x16", 4096: "8x16x16", 8192: "16x16x16"},
        12288: "16x16x24",
    },
}
KINDS = {
    **dict.fromkeys(("v5litepod", "v5lite", "tpu-v5e", "tpuv5e"), "v5e"),
    **dict.fromkeys(("tpu-v5p", "tpuv5p"), "v5p"),
    **dict.fromkeys(("tpu-v6e", "tpuv6e", "trillium"), "v6e"),
    **dict.fromkeys(("v7x", "tpu-7x", "tpu-v7x", "ironwood"), "tpu7x"),
    **dict.fromkeys(("a100-80gb", "a100-sxm", "a100-sxm4-80gb"), "a100"),
    **dict.fromkeys(("h100-80gb", "h100-sxm", "h100-sxm5"), "h100"),
    **dict.fromkeys(("rtx-4090", "geforce-rtx-4090", "4090"), "rtx4090"),
}
PER_MACHINE = 8  # GPUs


def canonical(text: str, platforms: dict[str, str]) -> str:
    """KIND:SIZES of a target. platforms: kind -> tpu, gpu or cpu.

    What it does not know comes back as it is, for `targets.parse` to refuse. Raises ValueError for
    a number of chips or cards that no machines make.
    """
    written = text.strip().lower().replace(" ", "").replace("_", "-")
    counted = re.fullmatch(r"(\d+)[x*]([a-z].*)", written)  # 8xh100
    if counted:
        written = f"{counted[2]}:{counted[1]}"
    kind, sizes = _split(written, platforms)
    if kind not in platforms:
        return text
    if platforms[kind] == "tpu" and kind in SLICES and re.fullmatch(r"-\d+", sizes):
        return f"{kind}:{_slice(text, kind, int(sizes[1:]))}"
    if platforms[kind] == "gpu":
        if not sizes:
            return f"{kind}:1x1"
        if number := re.fullmatch(r"[:x*-]([1-9]\d*)", sizes):
            return f"{kind}:{_machines(text, int(number[1]))}"
    return f"{kind}{sizes}"


AFTER = r"|:.*|[x*-]\d+"  # nothing, sizes, or a number


def _split(written: str, platforms: dict[str, str]) -> tuple[str, str]:
    """(kind, what follows it, with the sign between them)."""
    for name in sorted({*KINDS, *platforms}, key=len, reverse=True):
        if written.startswith(name) and re.fullmatch(AFTER, written[len(name) :]):
            return KINDS.get(name, name), written[len(name) :]
    return written.partition(":")[0], ""


def _slice(text: str, kind: str, number: int) -> str:
    if number in SLICES[kind]:
        return SLICES[kind][number]
    counts = "TensorCores, two per chip" if kind == "v5p" else "chips"
    known = ", ".join(f"{kind}-{n}" for n in SLICES[kind])
    raise ValueError(
        f"--target {text!r}: no slice has {number} {counts}; slices: {known}. Any torus: "
        f"{kind}:{SLICES[kind][256]}."
    )


def _machines(text: str, number: int) -> str:
    if number <= PER_MACHINE:
        return f"1x{number}"
    machines, rest = divmod(number, PER_MACHINE)
    if rest:
        raise ValueError(
            f"--target {text!r}: {number} GPUs do not fill machines of {PER_MACHINE}; give "
            "machines x GPUs, such as h100:3x4."
        )
    return f"{machines}x{PER_MACHINE}"

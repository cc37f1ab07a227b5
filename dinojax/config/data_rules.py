"""Rules of the images that a config names: mixtures and ranges of values."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dinojax.data.header import PLAIN
from dinojax.data.sources import AUTO, EMBEDDED, SOURCES

Values = Mapping[str, Any]  # dotted key -> value


def rules(values: Values) -> Iterator[str]:
    """Every rule that is broken, one sentence each, ending with a move."""
    yield from _mixture(values)
    yield from _ranges(values)
    yield from _scenes(values)


def _mixture(values: Values) -> Iterator[str]:
    rows = values["data.mixture"]
    names = [row[0] for row in rows]
    for name, kind, path, weight, alone in rows:
        where = f"data.mixture: {name!r}"
        if not re.fullmatch(r"[a-z0-9_-]+", name) or names.count(name) > 1:
            yield f"{where} is no name or there twice; use letters a-z, digits, - and _, once."
        if kind not in SOURCES:
            yield f"{where} has source {kind!r}; use {', '.join(map(repr, SOURCES))}."
        if not path and kind not in EMBEDDED:
            yield f"{where} has no path; give the one of its images, absolute or from data.path on."
        if weight < 0 or not 0 <= alone <= 1 or not weight + alone:
            yield (
                f"{where} has weight={weight} and alone={alone}; use a weight of at least 0, "
                "alone between 0 and 1, and one of them above 0."
            )
    alone, weight = sum(row[4] for row in rows), sum(row[3] for row in rows)
    if alone > 1 + 1e-9:
        yield f"data.mixture: the shares alone sum to {alone:.3g}, which exceeds 1; lower them."
    elif rows and (alone < 1 - 1e-9) != (weight > 0):
        yield (
            f"data.mixture: {max(0.0, 1 - alone):.3g} of the batches are mixed, but the weights "
            f"sum to {weight:.3g}; give weights where batches are mixed, and only there."
        )


def _scenes(values: Values) -> Iterator[str]:
    """Rules of the keys that scenes alone read."""
    kinds = {row[1] for row in values["data.mixture"]} or {values["data.source"]}
    if kinds & {"scenes", AUTO, *EMBEDDED}:  # the last two may turn out to be scenes
        return
    for name in ("tile_size", "max_nodata", "bands"):
        if values[f"data.{name}"] != getattr(PLAIN, name):
            yield (
                f"data.{name}={values[f'data.{name}']} is read by scenes, and the data are "
                f"{', '.join(sorted(kinds))}; set data.source=scenes, or leave it out."
            )


def _ranges(values: Values) -> Iterator[str]:
    """Rules of data.value_range and data.mixture_ranges."""
    channels, rows = values["image.channels"], values["data.mixture_ranges"]
    ends = values["data.value_range"]
    if len(ends) % 2:
        yield f"data.value_range={ends} has no pairs; give LOW, HIGH, or LOW, HIGH of each channel."
        return
    known = {row[0] for row in values["data.mixture"]}
    for name in sorted({row[0] for row in rows} - known):
        yield f"data.mixture_ranges: {name!r} is no source of data.mixture; name one of them."
    pairs = {"data.value_range": list(zip(ends[::2], ends[1::2], strict=True))}
    for name, low, high in rows:
        pairs.setdefault(f"data.mixture_ranges of {name!r}", []).append((low, high))
    for key, found in pairs.items():
        if found and len(found) not in (1, channels):
            yield (
                f"{key} has {len(found)} pairs for image.channels={channels}; give one for all "
                "channels, or one for each."
            )
        for low, high in found:
            if not low < high:
                yield f"{key}: {low:g}, {high:g} is not ascending; use LOW below HIGH."

"""`dinojax eval NAME`: evaluations of a checkpoint or of weights, each a record."""

import functools
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.config import ConfigError
from dinojax.eval import bootstrap
from dinojax.eval.baselines import compared, raw_pixels, told
from dinojax.eval.contract import Evaluation, Measured, build, draw
from dinojax.eval.features import EvalTransform
from dinojax.eval.network import Network
from dinojax.eval.row import Row, protocols_of
from dinojax.eval.suite import SUITE
from dinojax.eval.targets import PRECISION, Target, of_run, of_weights
from dinojax.runs import records
from dinojax.runs.directory import package_versions
from dinojax.runs.records import Record

log = logging.getLogger(__name__)

ALL = "all"  # in place of a name: every evaluation that there are data for
FEATURES = "features"  # folder of cached ones
# Keys that change no value: when it runs, and data, which enter by fingerprint. `free` of a row
# names more, such as a batch size where nothing is trained.
FREE = ("every", "bank", "query", "alarm", "alarm_stops")


def evaluate(
    name: str,
    run_dir: str | Path | None,
    overrides: Sequence[str],
    step: int | None,
    *,
    weights: str | None = None,
    data: str | None = None,
    stage: str | None = None,
    protocol: str | None = None,
    out: str | None = None,
    cache: bool = True,
    prefix: str = "",
    backbone: str | None = None,
    baselines: bool = False,
) -> list[Record]:
    """Measure, print and write down; of a run's ema (stage, step: None = the newest), or weights.

    data: train and val, in place of the run's. protocol: values that an evaluation's file names.
    out: folder of records, None = RUN/eval, or beside the weights. cache: keep features on disk.
    backbone: of weights of dino.txt that hold none.
    baselines: the same of random weights and of raw pixels, and whether the number is above them.
    """
    settings = [*protocol_settings(name, protocol, overrides), *overrides]
    if run_dir is not None:
        if prefix or out or backbone:
            raise ConfigError("--prefix, --backbone and --out are for --weights; leave them out.")
        target = of_run(Path(run_dir), settings, stage=stage, data=data)
    else:
        assert weights is not None
        if data is None or step is not None or stage is not None:
            raise ConfigError(
                "--weights needs --data; --stage and --step choose a checkpoint of a --run."
            )
        folder = None if out is None else Path(out)
        target = of_weights(weights, data, settings, out=folder, prefix=prefix, backbone=backbone)
    made = build_named(name, target)
    target.config.check_settings_read(overrides)
    return measure(target, made, step, protocol=protocol, cache=cache, baselines=baselines)


def protocol_settings(name: str, protocol: str | None, overrides: Sequence[str]) -> list[str]:
    """The values of a protocol as settings; --set goes before them."""
    if protocol is None:
        return []
    rows = SUITE.values() if name == ALL else [SUITE[name]]
    known = {row.section: protocols_of(row.module) for row in rows}
    having = {section: sets[protocol] for section, sets in known.items() if protocol in sets}
    if not having:
        named = sorted({name for sets in known.values() for name in sets})
        raise ConfigError(
            f"--protocol {protocol}: {name} has {', '.join(named) or 'none'}; leave it out, or "
            "give --set."
        )
    taken = {override.partition("=")[0].strip() for override in overrides}
    pairs = {f"{s}.{key}": value for s, values in having.items() for key, value in values.items()}
    return [f"{key}={value}" for key, value in pairs.items() if key not in taken]


def build_named(name: str, target: Target) -> dict[str, Evaluation]:
    """The evaluation of that name, or all for which there are data.

    Raises ConfigError where there are none.
    """
    if name == ALL:
        found = {other: build(other, target.setting) for other in SUITE if _is_on(other, target)}
        if kept := {other: made for other, made in found.items() if made is not None}:
            return kept
        raise ConfigError("there are no data for any evaluation; give --data, or --set KEY=VALUE.")
    row = SUITE[name]
    if not _is_on(name, target):
        raise ConfigError(f"{row.title}: set {row.section}.{row.switch}, which says how much.")
    if (made := build(name, target.setting)) is None:
        raise ConfigError(f"{row.title} needs {row.needs}; give --data, or --set KEY=VALUE.")
    return {name: made}


def _is_on(name: str, target: Target) -> bool:
    """Whether it can be built: a switch other than `every` says how much of it there is."""
    row = SUITE[name]
    return row.switch == "every" or row.is_asked(target.config.values())


def measure(
    target: Target,
    made: Mapping[str, Evaluation],
    step: int | None,
    *,
    protocol: str | None = None,
    cache: bool = True,
    keep: bool = True,
    baselines: bool = False,
) -> list[Record]:
    """Records of one network, each written down as soon as it is measured.

    cache: with features on disk; keep: also when all is done.
    """
    found, cached = [], target.folder / (FEATURES if keep else f"{FEATURES}.follow")
    with target.at_work():
        network, step, weights = target.open(step, cached=cached if cache else None)
        others = _baselines(target) if baselines else {}
        for name, evaluation in made.items():
            began = time.monotonic()
            measured = evaluation.measure(network)
            seconds, ends = round(time.monotonic() - began, 3), intervals(measured)
            column = SUITE[name].main_column(target.config.values())
            beside = compared(
                SUITE[name],
                evaluation,
                measured,
                column=column,
                networks=others,
                interval=ends.get(column),
            )
            record = Record(
                evaluation=name,
                values=dict(measured.values),
                intervals=ends,
                n=measured.num,
                protocol=protocol_of(target, name, evaluation),
                weights=weights,
                step=step,
                stage=None if step is None else target.config.stage,
                more={
                    "protocol_name": protocol,
                    "seed": target.config.values().get(f"{SUITE[name].section}.seed"),
                    "bootstrap": {"seed": bootstrap.SEED, "draws": bootstrap.DRAWS},
                    "told": measured.told,
                    "notes": notes_of(evaluation),
                    "seconds": seconds,
                    **({"baselines": beside} if beside else {}),
                    "versions": _versions(),
                },
            )
            records.append(target.folder, record)
            draw(target.folder, f"{name}-{record.fingerprint}-{step or 0:08d}", measured)
            say(SUITE[name], record, measured.told, notes_of(evaluation))
            for sentence in told(SUITE[name], beside):
                print(f"  {sentence}")
            found.append(record)
    if cache and not keep:
        shutil.rmtree(cached, ignore_errors=True)
    return found


def _baselines(target: Target) -> dict[str, Network]:
    assert target.random is not None, "every target knows its backbone"
    patch_size = target.setting.patch_size
    return {
        "random weights": target.network(target.random()),
        "raw pixels": raw_pixels(patch_size),
    }


_versions = functools.cache(package_versions)  # reads the metadata of all that is installed


def protocol_of(target: Target, name: str, evaluation: Evaluation) -> dict[str, Any]:
    """All that a value depends on besides the weights, as JSON values."""
    row, config = SUITE[name], target.config
    transform: Any = target.setting.transform
    own = transform.preprocessing if isinstance(transform, EvalTransform) else transform
    pixels = json.loads(json.dumps(own.to_json()))
    if own.normalize != "fixed":
        pixels |= {"mean": None, "std": None}  # which are not read
    section = getattr(config, row.section).values()
    return {
        "evaluation": name,
        "settings": {
            key.removeprefix(f"{row.section}."): list(v) if isinstance(v, tuple) else v
            for key, v in section.items()
            if key.removeprefix(f"{row.section}.") not in (*FREE, *row.free)
        },
        "data": [{"fingerprint": s.fingerprint, "images": len(s)} for s in evaluation.sources],
        "preprocessing": pixels,
        "precision": {part: config.precision.values()[part] for part in PRECISION},
    }


def intervals(measured: Measured) -> dict[str, tuple[float, float]]:
    """Of every column that has samples; more than one of them, for one tells no spread."""
    return {
        column: bootstrap.interval(samples, measured.statistic)
        for column, samples in measured.samples.items()
        if len(samples) > 1 and np.isfinite(samples).all()
    }


def notes_of(evaluation: Evaluation) -> list[str]:
    """What is said of its data: terms of use, counts that are not the published ones, and so on."""
    sources = evaluation.sources
    return list(dict.fromkeys(note for s in sources for note in getattr(s, "notes", ())))


def say(row: Row, record: Record, told: str, notes: Sequence[str] = ()) -> None:
    """The record in a few lines."""
    for note in notes:
        print(f"  {note}")
    where = "" if record.step is None else f"step {record.step}, "
    print(f"{where}{told or row.title}")
    for column, value in record.values.items():
        name = column.removeprefix(row.prefix)
        shown = str(value) if name == "skipped" else row.shown(value)
        ends = [row.shown(end) for end in record.intervals.get(column, ())]
        print(f"  {name:12s} {shown:>9s}" + (f"   95 %: {' to '.join(ends)}" if ends else ""))

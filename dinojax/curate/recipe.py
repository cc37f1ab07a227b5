"""The recipe of a curation: a YAML file, read key by key; what nothing reads is an error."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dinojax.curate.allocate import STRATEGIES
from dinojax.curate.assign import METRICS
from dinojax.curate.duplicates import KEEP
from dinojax.curate.embed import FEATURES
from dinojax.curate.parts import DTYPES
from dinojax.data import fields

CALIBRATE = "calibrate"


@dataclasses.dataclass(frozen=True)
class Embed:
    """How images become rows."""

    features: str = "both"  # cls, patches (their mean) or both, each of unit length
    dtype: str = "float16"
    batch_size: int = 64  # images of a forward pass, over all devices
    part_size: int = 8192  # images of a file
    max_bad_share: float = 0.001  # of images that cannot be read; ten are allowed, 0 = none


@dataclasses.dataclass(frozen=True)
class Dedup:
    """Which images are the same."""

    threshold: float | str | None = CALIBRATE  # of the cosine; calibrate = on augmented copies
    hash_radius: int | str | None = CALIBRATE  # bits in which perceptual hashes may differ
    neighbors: int = 64  # of an image that are looked at
    center: bool = True  # cosines of rows less their mean, which young networks share
    keep: str = "largest"  # of images that are the same; or first
    benchmarks: dict = dataclasses.field(default_factory=dict)  # name: path; none like theirs stays
    benchmark_threshold: float | None = None  # of the cosine; null = threshold
    num_calibrated: int = 256  # images of which copies are made


@dataclasses.dataclass(frozen=True)
class Kmeans:
    """The hierarchy, the lowest level first."""

    clusters: list = dataclasses.field(default_factory=list)
    sizes: list = dataclasses.field(default_factory=list)  # resampled of a cluster; [] = none
    splits: list = dataclasses.field(default_factory=list)  # two steps by so many; [] = one step
    rounds: int = 10  # of resampling
    strategy: str = "closest"  # of resampling; or random
    iterations: int = 50
    metric: str = "l2"  # or cos
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Sample:
    """The balanced set."""

    target: int = 0  # images
    strategy: str = "closest"  # of the images of a lowest cluster; or random
    multiplier: int = 1  # how often an image may be taken
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Seeds:
    """A seed set, whose like is retrieved from the pool."""

    path: str = ""
    by: str = "sample"  # or cluster
    neighbors: int = 4  # of each seed, by sample
    more_than: int = 3  # seeds of a cluster, by cluster
    per_cluster: int = 10_000  # images at most
    most: int = 1_000_000  # images at most
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set of a mixture that is taken as it is."""

    path: str = ""
    weight: float = 0.0
    alone: float = 0.0


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What `train` reads: shares of images of mixed batches, and of batches of one source alone."""

    recipe: str = ""  # of train, which the written recipe changes nothing of but its data
    weights: dict = dataclasses.field(default_factory=dict)  # clustered, and names of retrieve
    alone: dict = dataclasses.field(default_factory=dict)
    sources: dict = dataclasses.field(default_factory=dict)  # name: path, weight, alone


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All of a curation."""

    weights: str = ""
    pool: str = ""
    embed: Embed = dataclasses.field(default_factory=Embed)
    dedup: Dedup = dataclasses.field(default_factory=Dedup)
    kmeans: Kmeans = dataclasses.field(default_factory=Kmeans)
    sample: Sample = dataclasses.field(default_factory=Sample)
    retrieve: dict = dataclasses.field(default_factory=dict)  # name: Seeds
    mixture: Mixture = dataclasses.field(default_factory=Mixture)


KINDS: dict[str, Any] = {
    "threshold": (float, str, None),
    "hash_radius": (int, str, None),
    "benchmark_threshold": (float, None),
    "benchmarks": {str: str},
    "clusters": [int],
    "sizes": [int],
    "splits": [int],
    "retrieve": dict,
    "mixture.weights": {str: float},
    "alone": {str: float},
    "mixture.sources": dict,
}
CHOICES = {
    "embed.features": FEATURES,
    "embed.dtype": DTYPES,
    "dedup.keep": KEEP,
    "kmeans.strategy": STRATEGIES,
    "kmeans.metric": METRICS,
    "sample.strategy": STRATEGIES,
    "by": ("sample", "cluster"),
}
LEAST = {"neighbors": 1, "batch_size": 1, "part_size": 1, "multiplier": 1, "iterations": 1}
LEAST |= {"rounds": 0, "target": 0, "num_calibrated": 16, "more_than": 0, "per_cluster": 1}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, with overrides such as sample.target=2000 (values in YAML).

    Raises FileNotFoundError, and ValueError that names the key, the value and what may stand there.
    """
    path = Path(path)
    content = _yaml(path.read_text(), str(path))
    return resolve({} if content is None else content, overrides, where=str(path))


def resolve(content: Any, overrides: Sequence[str] = (), *, where: str) -> Recipe:
    """As `load`, of what a file says. where: the file, for messages."""
    fields.checked(content, dict, name="the whole", where=where)
    for setting in overrides:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: give KEY=VALUE, such as sample.target=2000.")
        at = content
        *sections, last = key.split(".")
        for section in sections:
            at = at.setdefault(section, {})
            fields.checked(at, dict, name=section, where=f"--set {key}")
        at[last] = _yaml(text, f"--set {key}")
    found = _section(Recipe, content, where, "")
    _check(found, where)
    return found


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error


def _section(kind: Any, content: dict, where: str, name: str) -> Any:
    """A dataclass of a dictionary; `name` stands before its keys in messages."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for key, value in content.items():
        full = f"{name}{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {name}{near[0]}?" if near else ""
            raise ValueError(f"{where}: {full} is no key of a curation{hint} {_listed(known)}")
        values[key] = _value(known[key], value, where, full)
    return kind(**values)


def _listed(known: dict) -> str:
    return f"(there are {', '.join(known)})"


def _value(field: dataclasses.Field, value: Any, where: str, full: str) -> Any:
    key = full.rpartition(".")[2]
    if dataclasses.is_dataclass(field.type):
        content = fields.checked(value or {}, dict, name=full, where=where)
        return _section(field.type, content, where, f"{full}.")
    kind = KINDS.get(full, KINDS.get(key, field.type))
    fields.checked(value, kind, name=full, where=where)
    choices = CHOICES.get(full, CHOICES.get(key))
    if choices and value not in choices:
        raise ValueError(f"{where}: {full}={value!r} is unknown; choose of {', '.join(choices)}.")
    if full in ("retrieve", "mixture.sources"):
        inner = Seeds if full == "retrieve" else Source
        return {
            name: _section(
                inner,
                fields.checked(content, dict, name=f"{full}.{name}", where=where),
                where,
                f"{full}.{name}.",
            )
            for name, content in value.items()
        }
    if key in LEAST and value < LEAST[key]:
        raise ValueError(f"{where}: {full}={value} must be at least {LEAST[key]}.")
    return value


def _check(recipe: Recipe, where: str) -> None:
    """What no single value shows."""
    for key in ("weights", "pool"):
        if not getattr(recipe, key):
            raise ValueError(f"{where}: {key} is empty; set it to a path.")
    for key in ("threshold", "hash_radius"):
        value = getattr(recipe.dedup, key)
        if isinstance(value, str) and value != CALIBRATE:
            raise ValueError(f"{where}: dedup.{key}={value!r}; give a number, {CALIBRATE} or null.")
    levels = len(recipe.kmeans.clusters)
    for key in ("sizes", "splits"):
        if (given := len(getattr(recipe.kmeans, key))) not in (0, levels):
            raise ValueError(
                f"{where}: kmeans.{key} has {given} numbers for the {levels} levels of "
                "kmeans.clusters; give one for each, or [] for none."
            )
    if (
        not recipe.dedup.threshold
        and recipe.dedup.benchmarks
        and not (recipe.dedup.benchmark_threshold)
    ):
        raise ValueError(f"{where}: dedup.benchmarks needs a threshold or benchmark_threshold.")
    clusters = [name for name, seeds in recipe.retrieve.items() if seeds.by == "cluster"]
    if clusters and not levels:
        raise ValueError(f"{where}: retrieve.{clusters[0]} is by cluster; set kmeans.clusters.")
    if recipe.sample.target and not levels:
        raise ValueError(f"{where}: sample.target needs kmeans.clusters.")
    known = [*(["clustered"] if recipe.sample.target else []), *recipe.retrieve]
    for name in (*recipe.mixture.weights, *recipe.mixture.alone):
        if name not in known:
            raise ValueError(
                f"{where}: mixture knows no {name!r}; there are {', '.join(known) or 'none'}."
            )

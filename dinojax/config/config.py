"""Load, freeze, explain and save a config: recipe -> overrides -> one checked, immutable object."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinojax.config import recipe as recipe_files
from dinojax.config import rules, saved, stage_rules
from dinojax.config.explain import Explanation, explain
from dinojax.config.overrides import parse, typed
from dinojax.config.recipe import ConfigError, flat, nest, unknown
from dinojax.config.rules import valid_group_sizes
from dinojax.configs import base

__all__ = ["Config", "ConfigError", "Explanation", "check", "diff", "explain", "load", "read"]
__all__ += ["load_stages", "load_students", "pick", "pick_students", "save", "saved_stages"]
__all__ += ["of_values", "valid_group_sizes"]


class Config:
    """An immutable section of the config: attributes are values or further sections.

    Reading a value by attribute is recorded, in one set shared by all sections, so that a run
    can refuse settings that nothing looked at. `values`, `to_dict` and `to_json` do not count.
    """

    __slots__ = ("_tree", "_prefix", "_reads", "sources", "recipe")

    def __init__(self, values: Mapping[str, Any], sources: Mapping[str, str], recipe: str = ""):
        """values: dotted key -> value. sources: dotted key -> base, recipe or --set."""
        self._fill(nest(values), "", set(), sources, recipe)

    def _fill(self, tree, prefix, reads, sources, recipe):
        for name, value in zip(self.__slots__, (tree, prefix, reads, sources, recipe), strict=True):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # protocols such as copy and pickle ask for these
        key = self._prefix + name
        if name not in self._tree:
            raise AttributeError(unknown(key, [self._prefix + other for other in self._tree]))
        value = self._tree[name]
        if isinstance(value, dict):
            section = object.__new__(Config)
            section._fill(value, key + ".", self._reads, self.sources, self.recipe)
            return section
        self._reads.add(key)
        return value

    def __setattr__(self, name: str, value: Any):
        raise AttributeError(f"a config is immutable: {self._prefix}{name} cannot be set")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._tree == other._tree

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"Config({self.values()})"

    def values(self) -> dict[str, Any]:
        """Dotted key -> value of this section; not recorded as reads."""
        return flat(self._tree)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionaries; not recorded as reads."""
        return nest(self.values())

    def to_json(self) -> str:
        """The nested dictionaries as JSON text; not recorded as reads."""
        return json.dumps(self.to_dict(), indent=1)

    def replaced(self, values: Mapping[str, Any]) -> "Config":
        """The whole config with other values; what is read of it counts for this one."""
        other = object.__new__(Config)
        tree = nest({**self.values(), **values})
        other._fill(tree, self._prefix, self._reads, self.sources, self.recipe)
        return other

    def unread(self) -> list[str]:
        """Keys that the recipe or --set changed from the default and that nothing has read."""
        default = flat(base.get_config())
        values = {self._prefix + key: value for key, value in self.values().items()}
        changed = [key for key, value in values.items() if value != default[key]]
        return [key for key in changed if key not in self._reads]

    def check_all_read(self, *, besides: tuple[str, ...] = ()) -> None:
        """Raise ConfigError naming every changed key that nothing has read.

        besides: prefixes of keys which a recipe (not --set) may change in vain, because the data
        that the run was given have no use for them.
        """
        unread = self.unread()
        unread = [k for k in unread if not (k.startswith(besides) and self.sources[k] == "recipe")]
        if unread:
            lines = [f"{key} is set (by {self.sources[key]}) but nothing read it" for key in unread]
            raise ConfigError("; ".join(lines) + "; remove it, or enable what uses it.")


def load(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    stage: str | None = None,
) -> Config:
    """The checked config of one stage of a recipe, by default its first. See `load_stages`."""
    return pick(load_stages(recipe, overrides, smoke=smoke), stage)


def load_students(
    recipe: str | Path, overrides: Sequence[str] = (), *, smoke: bool = False
) -> dict[str, list[Config]]:
    """Student -> the checked configs of its stages, of a recipe with STUDENTS.

    overrides: as for `load_stages`, or `STUDENT:key=value` for one student. Raises as that does,
    and ConfigError for a recipe without students.
    """
    path = recipe_files.find(recipe)
    names = recipe_files.students(path)
    if not names:
        raise ConfigError(f"{recipe} has no STUDENTS; `dinojax train` is the command for it.")
    found = {}
    for student in names:
        others = [f"{name}:" for name in names if name != student]
        kept = [o for o in overrides if not o.strip().startswith(tuple(others))]
        own = [o.strip().removeprefix(f"{student}:") for o in kept if o.startswith(f"{student}:")]
        given = {o.partition("=")[0].strip() for o in own}
        rest = [o for o in kept if not o.startswith(f"{student}:")]
        plain = [o for o in rest if o.partition("=")[0].strip() not in given]
        found[student] = load_stages(path, plain + own, smoke=smoke, student=student)
    return found


def load_stages(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    student: str | None = None,
) -> list[Config]:
    """The checked configs of all stages of a recipe file, or of a packaged one such as `tiny`.

    overrides: `key=value` for every stage or `STAGE:key=value` for one, applied last. smoke:
    shrink each by the recipe's own `smoke`. student: of a recipe that has STUDENTS. Raises
    ConfigError for unknown or duplicate keys, wrong types, and all broken rules at once.
    """
    path = recipe_files.find(recipe)
    names = recipe_files.stages(path)
    if student is None and (many := recipe_files.students(path)):
        raise ConfigError(
            f"{recipe} is for several students ({', '.join(many)}): use `dinojax distill` or "
            "`dinojax plan`, with --student NAME for one of them."
        )
    default = flat(base.get_config())
    found: list[Config] = []
    before = 0
    for name in names or (None,):
        values, sources = dict(default), dict.fromkeys(default, "base")
        for key, value in recipe_files.run(path, smoke=smoke, stage=name, student=student).items():
            values[key] = typed(key, value, default, place=f"{path}: ")
            if values[key] != default[key]:
                sources[key] = "recipe"
        own = _of_stage(overrides, values["stage"], names or (values["stage"],))
        for key, value in parse(own, default).items():
            values[key], sources[key] = value, "--set"
        if before and sources["start.steps_before"] == "base":
            values["start.steps_before"], sources["start.steps_before"] = before, "recipe"
        before = values["start.steps_before"] + values["num_steps"]
        found.append(Config(values, sources, str(recipe)))
        check(found[-1])
    if broken := stage_rules.problems([config.values() for config in found]):
        raise ConfigError(f"{recipe}: " + "\n  ".join(broken))
    return found


def of_values(values: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """The values in the types of configs/base.py, if a recipe of one stage may set them.

    recipe: what messages call it. Raises ConfigError as `load_stages`.
    """
    default = flat(base.get_config())
    given = {key: typed(key, v, default, place=f"{recipe}: ") for key, v in values.items()}
    config = Config(default | given, dict.fromkeys(default, "base"), recipe)
    check(config)
    if broken := stage_rules.problems([config.values()]):
        raise ConfigError(f"{recipe}: " + "\n  ".join(broken))
    return given


def pick(found: Sequence[Config], stage: str | None) -> Config:
    """The config of the stage of that name; of the first for None."""
    names = [config.values()["stage"] for config in found]  # not a read
    if stage is not None and stage not in names:
        only = "its only stage is" if len(names) == 1 else "its stages are"
        raise ConfigError(f"{found[0].recipe} has no stage {stage}; {only} {', '.join(names)}")
    return found[0 if stage is None else names.index(stage)]


def pick_students(
    found: Mapping[str, Sequence[Config]], names: Collection[str] | None
) -> dict[str, Sequence[Config]]:
    """Of `load_students` those of these names, as the recipe orders them; all for none."""
    if unknown := [name for name in names or () if name not in found]:
        recipe = next(iter(found.values()))[0].recipe
        raise ConfigError(f"no student {unknown[0]} in {recipe}: it has {', '.join(found)}")
    return {name: found[name] for name in found if not names or name in names}


def _of_stage(overrides: Sequence[str], stage: str, names: Sequence[str]) -> list[str]:
    """The overrides that a stage gets; `STAGE:key=value` goes before `key=value`."""
    plain, own = [], []
    for override in overrides:
        key, equals, text = override.partition("=")
        wanted, colon, inner = key.partition(":")
        if not (colon and equals):
            plain.append(override)
        elif wanted.strip() not in names:
            raise ConfigError(f"--set {override}: no stage {wanted}; stages: {', '.join(names)}")
        elif wanted.strip() == stage:
            own.append(f"{inner}={text}")
    given = {override.partition("=")[0].strip() for override in own}
    return [o for o in plain if o.partition("=")[0].strip() not in given] + own


def check(config: Config) -> None:
    """Raise ConfigError with every rule between keys that the config breaks."""
    if broken := rules.violations(config.values()):
        values = config.values()
        where = f", stage {values['stage']}" if values["start.steps_before"] else ""
        raise ConfigError(f"{config.recipe}{where}: " + "\n  ".join(broken))


def diff(a: Config, b: Config) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) wherever the two differ."""
    left, right = a.values(), b.values()
    return [(key, left[key], right[key]) for key in left if left[key] != right[key]]


def save(config: Config, path: str | Path, *, stages: Sequence[str] = (), **more: Any) -> None:
    """Write config.json: the values, where each comes from, and the recipe.

    stages: names of all stages of the run, where it has several. more: JSON values beside these.
    """
    saved.write(path, config.to_dict(), dict(config.sources), config.recipe, stages, **more)


def saved_stages(run_dir: str | Path) -> list[str]:
    """Names of the stages of a run directory, in their order."""
    return saved.read(Path(run_dir) / saved.FILE).stages


def read(path: str | Path, overrides: Sequence[str] = (), *, stage: str | None = None) -> Config:
    """The config of a saved config.json, or of the run directory that holds one.

    overrides: `key=value` strings. stage: of a run directory, None = the one it is at. A key
    declared after the run was saved takes its default, with a warning; a key that is no longer
    declared is an error.
    """
    path = Path(path)
    directory, path = path, path / saved.FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"no {path}: not a run directory of `dinojax train`")
    found = saved.read(path)
    if stage is not None and stage != found.values["stage"]:
        if stage not in found.stages:
            raise ConfigError(f"{directory} has no stage {stage}; it has {', '.join(found.stages)}")
        path = directory / "stages" / f"{stage}.json"
        found = saved.read(path)
    values, sources, default = dict(found.values), dict(found.sources), flat(base.get_config())
    if found.strange:
        raise ConfigError(f"{path}: {unknown(min(found.strange), default)}")
    for key in found.lacking:
        logging.getLogger(__name__).warning(
            "%s lacks %s, declared since; using %r", path, key, default[key]
        )
    for key, value in parse(overrides, default).items():
        values[key], sources[key] = value, "--set"
    if broken := rules.of_single_keys(values):
        raise ConfigError(f"{path}: " + "\n  ".join(broken))
    return Config(values, sources, found.recipe)

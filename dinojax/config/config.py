"""The config of a stage: checked, immutable, compared, saved."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinojax.config import rules, saved
from dinojax.config.recipe import ConfigError, flat, nest, unknown
from dinojax.configs import base


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

    def check_settings_read(self, settings: Sequence[str]) -> None:
        """Raise ConfigError naming each of these texts `key=value` whose key nothing has read.

        For commands that need a part of a run's config: what they do not need they refuse.
        """
        given = [setting.partition("=")[0].strip() for setting in settings]
        if unread := [key for key in given if key not in self._reads]:
            raise ConfigError(f"--set {', '.join(unread)}: nothing here reads it; leave it out.")

    def check_all_read(self, *, besides: tuple[str, ...] = ()) -> None:
        """Raise ConfigError naming every changed key that nothing has read.

        besides: prefixes of keys which a recipe (not --set) may change in vain, because the data
        that the run was given have no use for them.
        """
        unread = self.unread()
        unread = [k for k in unread if not (k.startswith(besides) and self.sources[k] != "--set")]
        if unread:
            lines = [f"{key} is set (by {self.sources[key]}) but nothing read it" for key in unread]
            raise ConfigError("; ".join(lines) + "; remove it, or enable what uses it.")


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

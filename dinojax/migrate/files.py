"""The two ends of a migration: a YAML file of theirs, and a recipe file of ours."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from dinojax.config.recipe import ConfigError
from dinojax.migrate.translate import Migration, Values

# What a training configuration stays far below; aliases may stand for much more than they take.
LARGEST, MOST, DEEPEST = 2**18, 20_000, 32  # bytes, values with aliases written out, levels
_TAG = "tag:yaml.org,2002:"


def read_yaml(path: str | Path) -> Values:
    """Dotted key -> value of a YAML file; lists as tuples, merge keys (`<<`) merged.

    Raises ConfigError with file and line for what is no YAML of named sections, for a key given
    twice, and for more than LARGEST, MOST or DEEPEST; OSError for a file that cannot be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ConfigError(
            f"{path} has more than {LARGEST // 1024} KiB; give a training configuration, which "
            "has a few"
        )
    try:
        loader = yaml.SafeLoader(data)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path} holds no sections with names; give a training configuration")
        return _Walk(loader, path).keys(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not YAML: its lists are nested too deep") from error


class _Walk:
    """From the nodes of a YAML file to values, each alias as if it were written out."""

    def __init__(self, loader: yaml.SafeLoader, path: str | Path):
        self._loader, self._path, self._left = loader, path, MOST

    def keys(self, node: yaml.MappingNode) -> Values:
        """Dotted key -> value of all sections."""
        found: Values = {}
        self._add(node, "", found, 1)
        return found

    def _add(self, node: yaml.MappingNode, prefix: str, found: Values, depth: int) -> None:
        for name, child in self._section(node, depth).items():
            key = prefix + name
            if isinstance(child, yaml.MappingNode):
                self._add(child, f"{key}.", found, depth + 1)
            elif key in found:
                raise self._error(child, f"{key} stands twice in this file; remove one")
            else:
                found[key] = self._value(child, depth + 1)

    def _section(self, node: yaml.MappingNode, depth: int) -> dict[str, yaml.Node]:
        """Name -> node of one section. What it says itself goes before what it merges."""
        self._spend(node, depth, "map")
        own: dict[str, yaml.Node] = {}
        merged: dict[str, yaml.Node] = {}
        for key, child in node.value:
            self._spend(key, depth)
            if key.tag == f"{_TAG}merge":
                for source in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    if not isinstance(source, yaml.MappingNode):
                        raise self._error(source, "`<<` merges sections alone")
                    merged = self._section(source, depth + 1) | merged
            elif key.tag != f"{_TAG}str":
                told = key.value if isinstance(key, yaml.ScalarNode) else "a list or a section"
                raise self._error(key, f"the key {told} is no name; keys are text")
            elif key.value in own:
                raise self._error(node, f"{key.value} stands twice in this section; remove one")
            else:
                own[key.value] = child
        return merged | own

    def _value(self, node: yaml.Node, depth: int) -> Any:
        if isinstance(node, yaml.MappingNode):  # in a list
            children = self._section(node, depth).items()
            return {name: self._value(child, depth + 1) for name, child in children}
        if isinstance(node, yaml.SequenceNode):
            self._spend(node, depth, "seq")
            return tuple(self._value(child, depth + 1) for child in node.value)
        self._spend(node, depth)
        value = self._loader.construct_object(node)
        # YAML takes numbers such as 1e-3 for text.
        plain = isinstance(value, str) and node.style is None
        if plain and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
            return float(value)
        return value

    def _spend(self, node: yaml.Node, depth: int, kind: str | None = None) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._error(node, f"its aliases stand for more than {MOST:,} values")
        if depth > DEEPEST:
            raise self._error(node, f"more than {DEEPEST} levels, or an alias within itself")
        if kind is not None and node.tag != _TAG + kind:
            raise self._error(node, f"the tag {node.tag} is not read; give plain lists and values")

    def _error(self, node: yaml.Node, what: str) -> ConfigError:
        return ConfigError(f"{self._path}:{node.start_mark.line + 1}: {what}")


HEAD = """\
\"\"\"Made of {source} by `dinojax config migrate`, for {gpus} GPUs of {flavour}.

Run:   dinojax train --config {name} --run runs/NAME --set data.path=IMAGES
Cost:  not known
Score: not known

{report}
\"\"\"

from dinojax.configs import base


def get_config():
    c = base.get_config()
"""


def recipe_text(found: Migration, *, source: str, name: str, gpus: int) -> str:
    """A recipe file: the values that differ from the defaults, and the report above them.

    Names and values of the file become data: whatever stands in them, none of it is code.
    """
    head = HEAD.format(
        source=_quoted(source),
        gpus=gpus,
        flavour=found.flavour,
        name=_quoted(shlex.quote(name)),
        report="\n".join(map(_quoted, found.report())),
    )
    lines = [f"    c.{key} = {value!r}" for key, value in found.values.items()]
    return head + "\n".join([*lines, "    return c"]) + "\n"


def _quoted(text: str) -> str:
    """One line of a docstring that reads as the text, whatever characters that has."""
    return "".join(
        f"\\{char}" if char in '"\\' else char if char.isprintable() else repr(char)[1:-1]
        for char in text
    )

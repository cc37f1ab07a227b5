"""The two ends of a migration: a YAML file of theirs, and a recipe file of ours."""

import re
from pathlib import Path
from typing import Any

from dinojax.config.recipe import ConfigError, flat
from dinojax.migrate.translate import Migration, Values


def read_yaml(path: str | Path) -> Values:
    """Dotted key -> value of a YAML file; lists as tuples.

    Raises ConfigError for a file that is no mapping, and for a key given twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            names = [self.construct_object(key, deep=deep) for key, _ in node.value]
            if twice := sorted({str(name) for name in names if names.count(name) > 1}):
                line = node.start_mark.line + 1
                raise ConfigError(
                    f"{path}:{line}: {', '.join(twice)} stands twice in this section; remove one"
                )
            return super().construct_mapping(node, deep=deep)

    try:
        tree = yaml.load(Path(path).read_text(), Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise ConfigError(f"{path} holds no sections with names; give a training configuration")
    return {key: _plain(value) for key, value in flat(tree).items()}


def _plain(value: Any) -> Any:
    """Lists as tuples, and numbers such as 1e-3, which YAML takes for text, as numbers."""
    if isinstance(value, list):
        return tuple(_plain(element) for element in value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", value):
        return float(value)
    return value


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
    """A recipe file: the values that differ from the defaults, and the report above them."""
    report = "\n".join(found.report()).replace("\\", "/").replace('"', "'")
    head = HEAD.format(source=source, gpus=gpus, flavour=found.flavour, name=name, report=report)
    lines = [f"    c.{key} = {value!r}" for key, value in found.values.items()]
    return head + "\n".join([*lines, "    return c"]) + "\n"

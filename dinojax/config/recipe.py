"""Run a recipe file; errors carry file and line."""

import ast
import contextlib
import importlib.util
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from dinojax.config.hints import nearest
from dinojax.configs import base

FOLDER = Path(base.__file__).parent  # of the packaged recipes


class ConfigError(ValueError):
    """A recipe, an override or a run's config that cannot be used; the message says the move."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested dictionaries or a ConfigDict."""
    values: dict[str, Any] = {}
    for name in tree:
        value = tree[name]
        nested = isinstance(value, (dict, ConfigDict))
        values |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return values


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries of dotted keys: the inverse of `flat`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, leaf = key.split(".")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
        section[leaf] = value
    return tree


def unknown(key: str, known: Iterable[str], *, section: bool = True) -> str:
    """The message for a key that is not declared: the nearest name, or the keys of a section."""
    known = list(known)
    inside = [other for other in known if other.startswith(key + ".")]
    if inside and section:
        return f"{key} is a section, not a key; its keys: {', '.join(inside)}"
    near = nearest(key, known)
    return f"{key} is not a key" + (f"; nearest: {near}" if near else "")


def is_packaged(recipe: str | Path) -> bool:
    """Whether it is the bare name of a recipe that comes with dinojax."""
    path = Path(recipe)
    named = path.name == str(recipe) and not path.suffix
    return named and path.name not in _NOT_RECIPES and (FOLDER / f"{recipe}.py").is_file()


def find(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the bare name of a packaged one."""
    if Path(recipe).is_file():
        return Path(recipe)
    if is_packaged(recipe):
        return FOLDER / f"{recipe}.py"
    names = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in _NOT_RECIPES)
    raise ConfigError(
        f"no recipe {recipe}; give a file or a run directory, or one of: {', '.join(names)}"
    )


_NOT_RECIPES = ("__init__", "base")
# What lies in a run directory besides students.
RESERVED = (
    *("autopsy", "checkpoints", "eval", "export", "lock", "log", "metrics", "pictures", "report"),
    *("stages", "tensorboard"),
)


def stages(path: Path) -> tuple[str, ...]:
    """Names of a recipe's STAGES in their order; empty if it has one stage and does not name it.

    Raises ConfigError for a STAGES that is no dictionary from names to functions.
    """
    return _named_functions(path, "STAGES", "configs/tiny_stages.py")


def computed(path: Path) -> Callable | None:
    """A recipe's own `computed`, or None: see config/computed.py."""
    found = getattr(_import(path), "computed", None)
    if found is not None and not callable(found):
        raise ConfigError(f"{path}: computed must be a function; see configs/own_small.py.")
    return found


def students(path: Path) -> tuple[str, ...]:
    """Names of a recipe's STUDENTS, who learn from one teacher; empty if it has none.

    Raises ConfigError for a STUDENTS that is no such dictionary, and for a name that is there
    twice, also in other letters, or that of a stage or of something else in a run directory.
    """
    found = _named_functions(path, "STUDENTS", "configs/distill_tiny.py")
    if not found:
        return ()
    taken = {name.lower(): f"that of a stage of {path}" for name in stages(path)}
    taken |= dict.fromkeys(RESERVED, "that of something else in a run directory")
    for name in _written_keys(path, "STUDENTS"):
        if (other := taken.get(name.lower())) is not None:
            raise ConfigError(
                f"{path}: the student's name {name!r} is {other}, and it becomes a folder; give "
                "every student a name of its own."
            )
        taken[name.lower()] = f"there twice in STUDENTS of {path}"
    return found


def _named_functions(path: Path, table: str, example: str) -> tuple[str, ...]:
    found = getattr(_import(path), table, {})
    if not isinstance(found, dict) or not all(map(callable, found.values())):
        raise ConfigError(
            f"{path}: {table} must map names to functions that take and return the config; see "
            f"{example}."
        )
    if bad := [name for name in found if not re.fullmatch(r"[A-Za-z][\w-]*", str(name))]:
        raise ConfigError(
            f"{path}: the name {bad[0]!r} in {table} becomes a folder; use letters, digits, - "
            "and _."
        )
    return tuple(found)


def _written_keys(path: Path, table: str) -> list[str]:
    """Keys of a dictionary as its file writes them: a dictionary keeps the last of equal ones."""
    keys = []
    for node in ast.parse(path.read_bytes()).body:
        names = [_name(target) for target in node.targets] if isinstance(node, ast.Assign) else []
        if table in names and isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            keys += [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
    return [str(key) for key in keys]


def _name(target: ast.expr) -> str:
    return target.id if isinstance(target, ast.Name) else ""


def run(
    path: Path, *, smoke: bool = False, stage: str | None = None, student: str | None = None
) -> dict[str, Any]:
    """Dotted key -> value of what the recipe's get_config (its stage, its smoke) returns.

    stage: one of STAGES, if the recipe has them; student: one of STUDENTS, whose function comes
    next and can look at c.stage, as can `smoke`, which comes last.
    Raises ConfigError, with file and line, for whatever the recipe raises, for a missing get_config
    or smoke, a key assigned twice, and for what is returned in place of the config.
    """
    module = _import(path)
    _refuse_duplicates(path)
    steps = ("get_config", "smoke") if smoke else ("get_config",)
    if missing := [name for name in steps if not callable(getattr(module, name, None))]:
        raise ConfigError(
            f"{path} has no function {missing[0]}; see configs/tiny.py for an example"
        )
    with _located(path):
        config = _config_of(module.get_config(), path, "get_config")
        if stage is not None:
            config.stage = stage
            config = _config_of(module.STAGES[stage](config), path, f"stage {stage}")
        if student is not None:
            config = _config_of(module.STUDENTS[student](config), path, f"student {student}")
        if smoke:
            config = _config_of(module.smoke(config), path, "smoke")
        return flat(config)


def _config_of(found: Any, path: Path, function: str) -> ConfigDict:
    """What a function of a recipe returned, if it is the config with all its keys."""
    if not isinstance(found, ConfigDict):
        raise ConfigError(f"{path}: {function} returns {type(found).__name__}, not the config")
    if lacking := flat(base.get_config()).keys() - flat(found).keys():
        raise ConfigError(
            f"{path}: {function} returns a config without {min(lacking)}; change and return the "
            "one of base.get_config()."
        )
    return found


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a recipe's name ends with .py")
    module = importlib.util.module_from_spec(spec)
    with _located(path):
        # Not by the loader: it takes bytecode of the same second and size for that of the file.
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def _located(path: Path) -> Iterator[None]:
    """Whatever a recipe raises becomes a ConfigError with the file and line that caused it."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(_in_words(error, path)) from error


def _in_words(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    if not own:  # it is not even compiled
        return f"{path}: {type(error).__name__}: {error}"
    line = own[-1] or 0
    if isinstance(error, SystemExit):
        return f"{path}:{line}: the recipe ends the process (exit code {error.code}); it must not"
    known = flat(base.get_config())
    declared = set(known) | {key.rpartition(".")[0] for key in known}
    nodes = ast.walk(ast.parse(path.read_bytes()))
    keys = [key for node in nodes for key, lines in _assigned(node) if line in lines]
    for key in keys:
        if key not in declared:
            return f"{path}:{line}: {unknown(key, known)}"
    what = f"{', '.join(keys)}: " if keys else ""
    return f"{path}:{line}: {what}{type(error).__name__}: {error}"


def _refuse_duplicates(path: Path) -> None:
    """A key assigned twice in one block of a function is a slip: the first value is lost."""
    for node in ast.walk(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Module):
            continue
        for _, block in ast.iter_fields(node):
            seen: dict[str, int] = {}
            for statement in block if isinstance(block, list) else ():
                for key, lines in _assigned(statement):
                    if key in seen:
                        raise ConfigError(
                            f"{path}:{lines[0]}: {key} is assigned twice, first in line "
                            f"{seen[key]}; keep one"
                        )
                    seen[key] = lines[0]


def _assigned(node: ast.AST) -> list[tuple[str, range]]:
    """(dotted key without its variable, lines) of a `c.a.b = ...` or `c.a.update(b=...)`."""
    if isinstance(node, ast.Assign):
        keys = [_dotted(target) for target in node.targets]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        section, dot, called = f".{_dotted(node.value.func)}".rpartition(".")
        prefix = f"{section}.".removeprefix(".")
        keys = [f"{prefix}{word.arg}" for word in node.value.keywords if called == "update"]
    else:
        return []
    return [(key, range(node.lineno, (node.end_lineno or node.lineno) + 1)) for key in keys if key]


def _dotted(node: ast.expr) -> str:
    """`a.b` of the expression c.a.b; empty for anything that is not an attribute."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return ".".join(names) if isinstance(node, ast.Name) else ""

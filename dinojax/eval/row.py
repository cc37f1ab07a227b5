"""A row of the table of evaluations, and what its file declares: read from the text, never run.

Imports nothing of this project, so that config, runs and monitor may read the table as well.
"""

import ast
import dataclasses
import functools
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

KEY_FIELDS = {"default", "says", "limits", "choices", "optional", "many"}
KINDS = {"int": int, "float": float, "str": str, "bool": bool}


@dataclasses.dataclass(frozen=True)
class Row:
    """An evaluation, as all that names columns, keys or commands sees it.

    Its file has the function `build(section, setting)` (contract.py) and a literal KEYS:
    {"key": {"default": ..., "says": "meaning; [source]", ...}}, besides which a key may have
    "limits" (smallest, largest; None = none), "choices", "optional" (the type beside None: int,
    float, str, bool) and "many" (a tuple of any length: the type of its elements).
    PROTOCOLS, a literal too, names sets of values of the section: {"paper": {"key": ...}}.
    """

    module: str  # of its file
    title: str  # as log, report and doctor call it
    says: str  # what it measures, as a line
    needs: str  # of data
    costs: str  # of time, in words
    prefix: str  # of its columns, with the slash
    main: str  # its one number: a column, in which {key} is a value of its section
    section: str  # of the config: its own name, or that of another row whose section it shares
    note: str  # under its chart in the report
    unit: str = "%"  # of its values
    switch: str = "every"  # key of the section without whose value it is not built; "" = none
    free: tuple[str, ...] = ()  # keys of the section that change none of its values
    better: int = 1  # 1: more is better; -1: less is; 0: neither, or no baseline is known
    is_watched: bool = False  # knn.alarm and the doctor judge by the first of these that is there

    def main_column(self, values: Mapping[str, Any]) -> str:
        """Of a config's dotted keys, the column that says most."""
        start = f"{self.section}."
        own = {key.removeprefix(start): v for key, v in values.items() if key.startswith(start)}
        return self.main.format(**own)

    def is_asked(self, values: Mapping[str, Any]) -> bool:
        """Whether a run with these values measures it, if there are data to do it with."""
        return not self.switch or values[f"{self.section}.{self.switch}"] not in (None, 0)

    def shown(self, value: float) -> str:
        """A value of it as users read it: 31.4 %."""
        return f"{value:.1f} %" if self.unit == "%" else f"{value:.4g} {self.unit}".strip()

    def columns(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """Its columns in rows of metrics.jsonl, those without any value left out; sorted.

        But for PREFIX/skipped, a number of images that could not be read.
        """
        names = {n for row in rows for n, v in row.items() if v and self.owns(n)}
        return sorted(names - {f"{self.prefix}skipped"})

    def owns(self, column: str) -> bool:
        return column.startswith(self.prefix)


@functools.cache
def keys_of(module: str) -> dict[str, dict[str, Any]]:
    """KEYS of a file. Raises ValueError with its path for what is no such table."""
    path, found = _literal(module, "KEYS")
    for key, row in found.items():
        strange = row.keys() - KEY_FIELDS
        if strange or not {"default", "says"} <= row.keys():
            raise ValueError(f"{path}: KEYS[{key!r}] has {sorted(row)}; see dinojax/eval/row.py.")
    return found


@functools.cache
def protocols_of(module: str) -> dict[str, dict[str, Any]]:
    """PROTOCOLS of a file; empty without one."""
    return _literal(module, "PROTOCOLS")[1]


def _literal(module: str, name: str) -> tuple[Path, dict[str, Any]]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"dinojax/eval/suite.py names {module}, which is not there.")
    path = Path(spec.origin)
    for node in ast.parse(path.read_bytes(), filename=str(path)).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        if name in [target.id for target in targets if isinstance(target, ast.Name)]:
            try:
                found = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            except ValueError as error:
                raise ValueError(f"{path}: {name} is no literal, as it must be: {error}") from None
            return path, found
    return path, {}

"""Which tests a change asks for: those of its packages and of all packages that import them.

python -m tests.programs.changed [COMMIT]   # since that commit, HEAD by default; one path a line
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.test_layers import FILES, LEVEL, imported_packages, package

ROOT = Path(__file__).parent.parent.parent
# What stands above every package, and what looks at all files.
ABOVE = ("tests/system", "tests/golden", "tests/programs", "tests/test_api.py")
ALWAYS = ("tests/test_layers.py", "tests/test_docs.py")


def users() -> dict[str, set[str]]:
    """Package -> packages that import it, over others as well, and itself."""
    imports: dict[str, set[str]] = {name: set() for name in LEVEL}
    for path in FILES:
        if (own := package(path)) is not None:
            imports[own] |= imported_packages(path.read_text())
    found = {name: {name} for name in LEVEL}
    for name in sorted(LEVEL, key=LEVEL.__getitem__):  # whom it imports is known already
        for other in imports[name] - {name}:
            for reached in found:
                if other in found[reached] | {reached}:
                    found[reached].add(name)
    return found


def tests_of(changed: Iterable[str]) -> list[str]:
    """Paths from the root to give to pytest; ["tests"] for what everything rests on."""
    chosen, above = set(ALWAYS), users()
    for path in map(Path, changed):
        head, *rest = path.parts
        if head == "dinojax" and rest[0] in LEVEL:
            chosen |= {f"tests/{name}" for name in above[rest[0]]} | set(ABOVE)
        elif head == "configs":
            chosen |= {f"tests/{name}" for name in above["config"]} | set(ABOVE)
        elif head == "benchmarks":
            chosen.add("tests/benchmarks")
        elif head == "tests" and path.name.startswith("test_"):
            chosen.add(str(path))
        elif head == "tests" and len(rest) > 1 and rest[0] not in ("support", "recorded"):
            chosen.add(f"tests/{rest[0]}")
        elif path.suffix not in (".md", ".sh") or head == "launch":
            return ["tests"]
    return sorted(name for name in chosen if (ROOT / name).exists())


def changed_since(commit: str) -> list[str]:
    """Files that differ from the commit, those that git does not know yet among them."""
    told = []
    for command in (
        ["git", "diff", "--name-only", "--no-renames", commit, "--"],
        ["git", "ls-files", "--others", "--exclude-standard"],
    ):
        told += subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
    return told


if __name__ == "__main__":
    print("\n".join(tests_of(changed_since(*sys.argv[1:] or ["HEAD"]))))

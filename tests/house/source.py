"""The product's own source files, for the tests that read them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = tuple(
    sorted(p for package in ("gateway", "backends") for p in (ROOT / package).rglob("*.py"))
)


def name_of(file: Path) -> str:
    """The file below the root: `gateway/wire/sse.py`."""
    return file.relative_to(ROOT).as_posix()


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), name_of(file))


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported anywhere in it, by its full name, and names from it too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)

"""Files and functions stay as small as one person reads in one go."""

import ast
from pathlib import Path

import pytest

from tests.house.source import FILES, ROOT, name_of, tree_of

LONGEST_FILE = 400
LONGEST_FUNCTION = 60
#: Names that say nothing of what is in there.
NAMELESS = {"common", "core", "helper", "helpers", "manager", "misc", "services", "util", "utils"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_is_under_400_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) < LONGEST_FILE


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_function_is_under_60_lines(file: Path) -> None:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 < LONGEST_FUNCTION, node.name


def test_every_file_has_a_name_that_says_what_is_in_it() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    parts = {part for file in (*FILES, *tests) for part in file.relative_to(ROOT).parts}
    assert not {part.removesuffix(".py") for part in parts} & NAMELESS

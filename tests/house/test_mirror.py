"""Every module of the product has its tests at the same place below `tests`."""

from pathlib import Path

import pytest

from tests.house.source import FILES, ROOT, name_of

MODULES = [file for file in FILES if file.name != "__init__.py"]


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_a_module_has_its_tests_at_the_same_place(file: Path) -> None:
    mirror = ROOT / "tests" / file.relative_to(ROOT).with_name(f"test_{file.name}")
    assert mirror.exists(), f"no {mirror.relative_to(ROOT)}"
    assert "def test_" in mirror.read_text()

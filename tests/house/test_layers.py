"""Who may import whom: the contracts under `tool.importlinter` in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from tests.house.source import ROOT


def lint(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "lint-imports"
    return subprocess.run(
        [str(program), "--no-cache", "--no-logo", "--config", str(config)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_module_imports_only_from_below_it() -> None:
    result = lint(ROOT, ROOT / "pyproject.toml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_import_is_excused_from_the_contracts() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert "ignore_imports" not in text
    assert "allow_indirect_imports" not in text
    assert text.count("exhaustive = true") == text.count('type = "layers"')

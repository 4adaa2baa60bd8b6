"""One library, one door: which file may import what, and which libraries none may."""

import ast
from pathlib import Path

import pytest

from tests.house.source import FILES, imported, name_of, tree_of

#: Each library with an API of its own, and the files that may know it.
DOORS = {
    "click": {
        *("gateway/cli.py", "gateway/operator/drain.py", "gateway/operator/limits.py"),
        *("gateway/operator/port.py", "gateway/operator/status.py"),
    },
    "httptools": {"gateway/front.py", "backends/connection.py"},
    "prometheus_client": {"gateway/metrics.py"},
    "redis": {"gateway/limits/redis.py"},
    "rich": {
        *("gateway/cli.py", "gateway/up.py"),
        *("gateway/operator/limits.py", "gateway/operator/shown.py", "gateway/operator/status.py"),
    },
    "sse_starlette": {"gateway/admin.py"},
    "ssl": {"gateway/fleet.py", "gateway/port.py", "backends/base.py"},
    "starlette": {"gateway/admin.py", "gateway/app.py"},
    "uvicorn": {f"gateway/{name}.py" for name in ("door", "front", "listeners", "visit")},
    "uvloop": {f"gateway/{name}.py" for name in ("employed", "supervisor", "up", "worker")},
    "yaml": {"gateway/document.py"},
}
#: A second client, a second framework.
NOWHERE = (
    *("aiohttp", "fastapi", "http.client", "httpcore", "httpx", "requests", "urllib.request"),
    # Both read whole bodies, or files, on their own terms.
    *("starlette.formparsers", "starlette.staticfiles"),
)
#: Where the environment is looked at; everywhere else it comes in as an argument.
ENVIRONMENT = {
    "gateway/cli.py",
    "gateway/operator/port.py",
    "backends/guard.py",
    "backends/install.py",
    "backends/launch.py",
}
_ENVIRONMENT = {"os.environ", "os.environb", "os.getenv"}


def below(name: str, library: str) -> bool:
    return name == library or name.startswith(library + ".")


@pytest.mark.parametrize("library", DOORS)
def test_a_library_is_known_only_behind_its_door(library: str) -> None:
    knowing = {
        name_of(file)
        for file in FILES
        if any(below(name, library) for name in imported(tree_of(file)))
    }
    assert knowing == DOORS[library]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_file_imports_what_has_no_door(file: Path) -> None:
    names = set(imported(tree_of(file)))
    assert not {name for name in names for library in NOWHERE if below(name, library)}


def test_the_environment_is_read_at_the_edge_only() -> None:
    reading = set()
    for file in FILES:
        tree = tree_of(file)
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if _ENVIRONMENT & (used | set(imported(tree))):
            reading.add(name_of(file))
    assert reading == ENVIRONMENT


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_stand_at_the_top_and_nothing_is_global(file: Path) -> None:
    tree = tree_of(file)
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), node.lineno
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert id(node) in top, f"line {node.lineno}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_begins_with_its_one_job(file: Path) -> None:
    assert ast.get_docstring(tree_of(file)) or not file.read_text()

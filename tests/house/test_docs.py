"""What the documentation names is there: pages, settings, metrics, errors, paths, commands."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import pytest

from backends.launch import TINY
from gateway import config as configuration
from gateway.cli import main
from gateway.endpoints import ENDPOINTS
from gateway.errors import ClientGone, GatewayError
from gateway.metrics import Metrics
from gateway.reader import unwrapped
from gateway.route import Routes
from gateway.settings import Config, Settings, Timeouts
from gateway.terms import PRIVILEGED
from gateway.units import duration_text
from gateway.wire.fields import FIELDS
from tests.fakes.client import request
from tests.fakes.gateway import configured, serving
from tests.house.source import ROOT

DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted(DOCS.rglob("*.md")))
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

#: The pages of the admin port alone.
ADMIN = ("/metrics", "/status", "/limits")

_FENCE = re.compile(r"^(?P<mark>[^\n]*)\n```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_TICKED = re.compile(r"`([^`\n]+)`")
_DOTTED = re.compile(r"[a-z_]+(\.[a-z_]+)+")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub(r"\g<mark>", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The headings of a page in the form that links to them have."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"no {target}"
        assert not anchor or anchor in anchors(other), f"{target} has no such heading"


def test_every_page_can_be_reached_from_the_first() -> None:
    reached: set[Path] = set()
    waiting = [DOCS / "index.md", ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.exists():
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(prose(page)) if "://" not in link)
        waiting += [(page.parent / link).resolve() for link in links if link]
    assert set(PAGES) <= reached


def configurations() -> Iterator[tuple[str, str]]:
    for page, name in zip(PAGES, NAMES, strict=True):
        for block in _FENCE.finditer(page.read_text(encoding="utf-8")):
            if block["mark"] == "<!-- run: config -->":
                yield name, block["text"]


def test_every_whole_configuration_is_good() -> None:
    blocks = list(configurations())
    assert blocks
    for name, text in blocks:
        configuration.load(name, text, {"FAIRGATE_SECRET": "a secret of the tests"})


def noun_in(wanted: Any) -> type[Settings] | None:
    """The settings a type holds, in lists and dictionaries too."""
    bare, _ = unwrapped(wanted)
    if isinstance(bare, type) and issubclass(bare, Settings):
        return bare
    return next(filter(None, map(noun_in, get_args(bare))), None)


def setting_exists(path: list[str]) -> bool:
    """`bounds.bodies`, `keys.expires`: an entry's place or name is left out."""
    noun: type[Settings] | None = Config
    for name in path:
        types = {field.name: field.type for field in msgspec.structs.fields(noun)} if noun else {}
        if name not in types:
            return False
        noun = noun_in(types[name])
    return True


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_setting_named_by_its_path_exists(page: Path) -> None:
    for ticked in _TICKED.findall(prose(page)):
        path = ticked.partition(":")[0]
        first, last = path.partition(".")[0], path.rpartition(".")[2]
        simple = _DOTTED.fullmatch(path) and last not in ("py", "md", "yaml", "toml", "cfg")
        if simple and first in Config.__struct_fields__:
            assert setting_exists(path.split(".")), f"no setting {path}"


def test_every_timeout_is_told_with_its_default() -> None:
    page = (DOCS / "path-of-a-request.md").read_text(encoding="utf-8")
    for field in msgspec.structs.fields(Timeouts):
        row = f"| `timeouts.{field.name}` | `{duration_text(field.default)}` |"
        assert row in page, row


def test_the_metrics_told_are_those_there_are() -> None:
    rendered = Metrics(Routes({})).render().decode()
    there = set(re.findall(r"^# TYPE (\w+)", rendered, re.M))
    told = {page: set(re.findall(r"\bfairgate_\w+", prose(page))) for page in PAGES}
    for page, names in told.items():
        assert names <= there, page
    assert told[DOCS / "operations.md"] == there


def errors(noun: type[GatewayError]) -> Iterator[type[GatewayError]]:
    for error in noun.__subclasses__():
        yield error
        yield from errors(error)


@pytest.mark.parametrize("error", [e for e in errors(GatewayError) if e is not ClientGone])
def test_every_error_has_its_row(error: type[GatewayError]) -> None:
    status = str(error.status)
    if error.anthropic_status is not None:
        status += f" ({error.anthropic_status})"
    row = f"| {status} | `{error.type}` | `{error.code}` | `{error.anthropic_type}` |"
    assert row in (DOCS / "endpoints.md").read_text(encoding="utf-8"), row


def test_every_privileged_and_capped_field_is_named() -> None:
    page = (DOCS / "endpoints.md").read_text(encoding="utf-8")
    capped = {name for table in FIELDS.values() for name, check in table.items() if check}
    told = set(_TICKED.findall(page))
    assert capped | PRIVILEGED <= told, (capped | PRIVILEGED) - told


async def test_every_path_is_served_and_every_path_served_is_told() -> None:
    page = (DOCS / "endpoints.md").read_text(encoding="utf-8")
    told = re.findall(r"`(GET|POST|HEAD) (/\S*)`", page)
    assert {endpoint.path for endpoint in ENDPOINTS} <= {path for _, path in told}
    async with serving(configured("http://127.0.0.1:9")) as gateway:
        for port in (gateway.port, gateway.admin_port):
            assert (await request(port, "GET", "/nothing-here")).status == 404
        for method, path in told:
            port = gateway.admin_port if path in ADMIN else gateway.port
            answer = await request(port, method, path.replace("{id}", "tiny"))
            assert answer.status in (200, 401), (method, path)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_every_example_asks_for_the_model_that_is_made_where_no_hub_answers(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [b["text"] for b in _FENCE.finditer(text) if b["kind"] in ("python", "bash")]
    for block in blocks:
        for name in re.findall(r'model": ?"([^"]+)|model="([^"]+)|_MODEL=(\S+)', block):
            assert TINY in name, block
        # What a reader pastes shows that it worked.
        assert "client." not in block or "print(" in block, block
    claude = next(block for block in blocks if "ANTHROPIC_BASE_URL" in block)
    assert "ANTHROPIC_SMALL_FAST_MODEL" in claude


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_named_exists(page: Path) -> None:
    assert isinstance(main, click.Group)
    text = page.read_text(encoding="utf-8")
    blocks = [b["text"] for b in _FENCE.finditer(text) if b["kind"] == "bash"]
    pieces = [*_TICKED.findall(prose(page)), *"\n".join(blocks).splitlines()]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for piece in pieces:
        if found := re.match(r"fairgate ([a-z]+)(?: ([a-z]+))?", piece):
            group = main.commands.get(found[1])
            assert group is not None, piece
            assert not isinstance(group, click.Group) or found[2] in (None, *group.commands), piece
        if found := re.match(r"make ([a-z]+)", piece):
            assert re.search(rf"^(\w+ )*{found[1]}\b.*:", makefile, re.M), piece

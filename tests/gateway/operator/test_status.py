"""`fairgate status`: shown once, or watched, through a gateway's end and its return."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.live import Live

from gateway import cli
from gateway.operator import status as command
from gateway.operator.port import Away
from gateway.operator.status import Lines, Redrawn
from gateway.units import Address
from tests.fakes.engine import Engine
from tests.fakes.gateway import Command, Serving, configured, serving
from tests.fakes.script import Hang, Rst, Step, stream
from tests.gateway.operator.test_shown import replica, told


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


async def ask(gateway: Serving, *arguments: str) -> Result:
    """`fairgate status` of a gateway in this event loop."""
    admin = ("--admin", f"http://127.0.0.1:{gateway.admin_port}")
    return await asyncio.to_thread(run, "status", *arguments, *admin)


async def test_pools_are_shown_with_their_replicas() -> None:
    away = "http://127.0.0.1:1"
    async with Engine() as engine, serving(configured(engine.url, away)) as gateway:
        result = await ask(gateway)
    assert result.exit_code == 0, result.output
    first, _, heads, one, other = result.output.splitlines()
    assert first.startswith("ready, 0 requests under way; worker ")
    assert heads.split()[:3] == ["pool", "replica", "standing"]
    assert one.split()[:5] == ["tiny", engine.url, "up", "0", "0"]
    assert other.split()[:2] == [away, "up"]
    assert one.index("http") == other.index("http")


async def test_scripts_get_what_the_gateway_told() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        document = json.loads((await ask(gateway, "--json")).stdout)
    assert document["pools"]["tiny"]["replicas"][0]["url"] == engine.url


@pytest.mark.parametrize("watch", [(), ("--watch",)])
async def test_a_gateway_that_is_not_there_is_named(watch: tuple[str, ...]) -> None:
    async with Command("status", "--admin", "http://127.0.0.1:1", *watch) as status:
        assert await status.ended() == 3
    assert b"fairgate: no answer from the admin port http://127.0.0.1:1 (" in status.err


# Watched


class Seen:
    """A screen that keeps what it is given, and ends the watch after so many."""

    def __init__(self, most: int) -> None:
        self.seen: list[Any] = []
        self._most = most

    def show(self, document: dict[str, Any]) -> None:
        self._keep(document["number"])

    def away(self, why: str) -> None:
        self._keep(why)

    def _keep(self, seen: Any) -> None:
        self.seen.append(seen)
        if len(self.seen) == self._most:
            raise Enough


class Enough(Exception):
    pass


async def test_a_gateway_that_goes_away_is_looked_for_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "_AGAIN", 0.0)
    event = b'data: {"pools": {}, "number": %d}\n\n'
    rows: list[list[Step]] = [
        stream([event % 1]),
        [Rst()],
        [*stream([event % 2], end=False), Hang()],
    ]
    async with Engine(lambda _: rows.pop(0)) as engine:
        seen = Seen(4)
        with pytest.raises(Enough):
            await command._watched(Address("127.0.0.1", engine.port), seen)
    away = f"http://127.0.0.1:{engine.port} does not answer any more; looking for it"
    assert seen.seen == [1, away, away, 2]


async def test_one_that_was_never_there_is_not_looked_for() -> None:
    with pytest.raises(Away):
        await command._watched(Address("127.0.0.1", 1), Seen(1))


def console(**more: Any) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=400, markup=False, **more), file


def test_without_a_terminal_each_change_is_a_line() -> None:
    on, file = console()
    lines = Lines(on)
    for document in (told(replica()), told(replica(in_flight=1)), told(replica(drained=True))):
        lines.show(document)
    lines.away("gone")
    lines.away("gone")
    lines.show(told(replica()))
    lines.show(told(replica(standing="drained", why="drained by the operator")))
    summary = "ready, 1,200 requests under way; worker 4711: 3"
    up = "llama http://gpu1:8000: up"
    drained = "llama http://gpu1:8000: drained; drained by the operator"
    texts = [line.partition("  ")[2] for line in file.getvalue().splitlines()]
    assert texts == [summary, up, "gone", summary, up, drained]


def test_on_a_terminal_the_last_of_a_gateway_that_is_gone_stays() -> None:
    on, file = console(force_terminal=True, color_system=None)
    with Live(console=on, auto_refresh=False) as live:
        screen = Redrawn(live)
        screen.show(told(replica()))
        assert "http://gpu1:8000" in file.getvalue()
        file.truncate(0)
        screen.away("it does not answer any more")
    assert "it does not answer any more. This was the last of it:" in file.getvalue()
    assert "http://gpu1:8000" in file.getvalue()

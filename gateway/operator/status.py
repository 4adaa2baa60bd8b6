"""`fairgate status`: how the pools stand, once or until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, Protocol

import click
import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from gateway.operator import shown
from gateway.operator.port import Away, asked, asks, followed, port
from gateway.units import Address

#: How often a gateway that is gone is looked for, in seconds.
_AGAIN = 1.0


@click.command()
@click.option("--watch", is_flag=True, help="Go on telling what changes, until Ctrl-C.")
@click.option("--json", "raw", is_flag=True, help="What the gateway told, for scripts.")
@asks
def status(watch: bool, raw: bool, admin: str | None, file: str | None) -> None:
    """Show the pools: how each replica stands and why, what it does, and its last error.

    Where the admin port has a key, FAIRGATE_ADMIN_KEY holds it.
    """
    at = port(admin, file)
    if watch:
        with contextlib.suppress(KeyboardInterrupt), _screen(raw) as screen:
            asyncio.run(_watched(at, screen))
        return
    told = asked(at, "GET", "/status", "pools", dict)
    if raw:
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    else:
        shown.console().print(shown.whole(told))


async def _watched(at: Address, screen: Screen) -> None:
    """For ever: a gateway that goes away is looked for until it is back."""
    there = False
    while True:
        try:
            async with aclosing(followed(at)) as documents:
                async for told in documents:
                    there = True
                    screen.show(told)
        except Away:
            if not there:
                raise  # most likely the wrong address
            screen.away(f"http://{at} does not answer any more; looking for it")
        await asyncio.sleep(_AGAIN)


class Screen(Protocol):
    """Where a watcher sees what is told."""

    def show(self, told: dict[str, Any]) -> None: ...
    def away(self, why: str) -> None: ...


@contextlib.contextmanager
def _screen(raw: bool) -> Iterator[Screen]:
    console = shown.console()
    if raw:
        yield Documents()
    elif not console.is_terminal:
        yield Lines(console)
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield Redrawn(live)


class Documents:
    """Each document as a line of JSON; that the gateway is gone is said on standard error."""

    def show(self, told: dict[str, Any]) -> None:
        click.echo(orjson.dumps(told))

    def away(self, why: str) -> None:
        click.echo(f"fairgate: {why}", err=True)


class Lines:
    """A line for each change, with its time. Mutable state: what was told last."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, Any] = {}
        self._gone = False

    def show(self, told: dict[str, Any]) -> None:
        for line in shown.changes({} if self._gone else self._told, told):
            self._say(line)
        self._told, self._gone = told, False

    def away(self, why: str) -> None:
        if not self._gone:
            self._say(why)
        self._gone = True

    def _say(self, line: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {line}")


class Redrawn:
    """All of it in place, on a terminal. Mutable state: what was told last."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._told: dict[str, Any] | None = None

    def show(self, told: dict[str, Any]) -> None:
        self._told = told
        self._live.update(shown.whole(told), refresh=True)

    def away(self, why: str) -> None:
        assert self._told is not None
        notice = Text(f"{why}. This was the last of it:", style="bold red")
        self._live.update(Group(notice, shown.whole(self._told)), refresh=True)

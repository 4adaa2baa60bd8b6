"""`fairgate up`: engines of our own and the gateway in front, in one go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.live import Live
from rich.table import Table

from backends.launch import Engine, Launched, Progress
from gateway import config as configuration
from gateway.listeners import CannotStart, check_free
from gateway.settings import Config, Key, Team, Timeouts
from gateway.units import Address
from gateway.worker import Worker

#: How often a terminal that cannot be redrawn hears of an engine that loads, in seconds.
_PLAIN_EVERY = 10.0
#: One person's own engines: nobody else has to notice that they go.
_TIMEOUTS = Timeouts(lame_duck=0.0, drain=5.0)
#: The admin port that the operator's commands ask.
_ADMIN = Config().admin_listen


class Loading:
    """What is seen while engines load. Mutable state: the newest of each engine."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._newest: dict[str, Progress] = {}
        self._told_at: dict[str, float] = {}
        self._live = Live(console=console, get_renderable=self._table, transient=True)

    def __enter__(self) -> Loading:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        name = progress.engine.name
        self._newest[name] = progress
        if progress.ready:
            self._console.print(f"  {name} is ready after {progress.seconds:.0f} s")
        elif not self._console.is_terminal:
            now = time.monotonic()
            if now - self._told_at.get(name, 0.0) >= _PLAIN_EVERY:
                self._told_at[name] = now
                self._console.print(f"  {name} loads, {progress.seconds:.0f} s")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, progress in self._newest.items():
            if not progress.ready:
                line = progress.line[: max(20, self._console.width - len(name) - 20)]
                table.add_row("", name, f"{progress.seconds:.0f} s", line)
        return table


def run(
    engines: Sequence[Engine],
    listen: Sequence[str],
    key: tuple[str, Key],
    secret: str,
    log: Path,
    console: Console,
) -> None:
    """Serve until told to end. Raises EngineDied, CannotStart and ConfigError."""
    settings: dict[str, Any] = {"listen": list(listen)} if listen else {}
    config = configuration.discovered(
        [engine.url for engine in engines],
        keys=(key[1],),
        teams={key[1].team: Team()},
        timeouts=_TIMEOUTS,
        **settings,
    )
    check_free(config.listen)  # before a minute of loading, not after
    if config.admin_listen is not None:
        try:
            check_free([config.admin_listen])
        except CannotStart:
            config = configuration.override(config, admin_listen=Address("127.0.0.1", 0))
    uvloop.run(_serve(engines, config, key[0], secret, log, console))


async def _serve(
    engines: Sequence[Engine], config: Config, key: str, secret: str, log: Path, console: Console
) -> None:
    with Loading(console) as loading:
        launched = Launched(engines, loading)
        await launched.__aenter__()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            worker = Worker(config, secret, file.fileno())

            def started(addresses: list[str]) -> None:
                _tell(console, engines, addresses[0], key, log, worker.admin_address)

            await _first_to_end(worker.run(started), launched.watch())
    finally:
        console.print("fairgate: ending the engines ...")
        await launched.close()


async def _first_to_end(*lives: Coroutine[None, None, None]) -> None:
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(life) for life in lives]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _tell(
    console: Console,
    engines: Sequence[Engine],
    address: str,
    key: str,
    log: Path,
    admin: str | None,
) -> None:
    url = address if address.startswith("unix:") else f"http://{address}"
    console.print(f"\n[bold]fairgate listens on {url}[/bold]\n  key     {key}", highlight=False)
    for engine in engines:
        console.print(f"  {engine.role:<9} {engine.name}", highlight=False)
    if admin is not None and admin != str(_ADMIN):
        # The operator's commands ask the usual port, which is another gateway's.
        told = f"  {_ADMIN} is taken; ask this one with `fairgate status --admin http://{admin}`"
        console.print(told, highlight=False, soft_wrap=True)
    console.print(f"  the log of requests is {log}\n", highlight=False)
    chat = next((engine.name for engine in engines if engine.role == "chat"), None)
    if chat is not None:
        console.print("Paste this:\n", highlight=False)
        console.out(_CURL.format(url=url, key=key, model=chat), highlight=False)
        console.print("Or this, after `pip install openai`:\n", highlight=False)
        console.out(_PYTHON.format(url=url, key=key, model=chat), highlight=False)
    console.print("Ctrl-C ends everything.", highlight=False)


_CURL = """\
curl {url}/v1/chat/completions \\
  -H 'authorization: Bearer {key}' \\
  -H 'content-type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
"""
_PYTHON = """\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{key}")
stream = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello!"}}], stream=True
)
for event in stream:
    print(event.choices[0].delta.content or "", end="", flush=True)
"""

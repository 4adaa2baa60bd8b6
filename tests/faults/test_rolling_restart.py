"""Two gateways behind haproxy are restarted in turn, and none of their callers notices."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.client import Client
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Command, configured, until
from tests.fakes.haproxy import Haproxy, free_port
from tests.fakes.script import Received, Step, stream
from tests.faults.asking import CHAT, MESSAGES, body, events, heard

pytestmark = [
    pytest.mark.usefixtures("no_traceback"),
    pytest.mark.skipif(
        shutil.which("haproxy") is None,
        reason="haproxy is not installed (Debian: apt-get install haproxy)",
    ),
]

#: The gateway's default of `lame_duck`, which `deploy/haproxy.cfg` is written for.
TIMEOUTS = "{heartbeat: 1s, lame_duck: 5s, drain: 120s}"


@dataclass(frozen=True)
class Load:
    """How many streams are live at any time, how long each is, and new connections a second."""

    streams: int
    seconds: float
    rate: int


@dataclass
class Seen:
    """What callers met. `odd` holds all that is no whole answer, `whole` counts those that are."""

    whole: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)

    async def ask(self, port: int, path: str, kind: str, *, client: Client | None = None) -> None:
        asked = body(path, messages=[{"role": "user", "content": kind}])
        try:
            if client is not None:
                await client.post(path, asked, HEADERS)
                answer = await heard(client, path)
            else:
                async with await Client.open(port, patience=60) as fresh:
                    await fresh.post(path, asked, HEADERS)
                    answer = await heard(fresh, path)
        except (OSError, EOFError, AssertionError) as exc:
            self.odd.append(f"{kind}: {type(exc).__name__} {exc}")
            return
        if answer.status == 200 and answer.without_heartbeats == events(path):
            self.whole[kind] += 1
        else:
            self.odd.append(f"{kind}: {answer.status} {answer.plain or answer.events[-1:]}")


class Crowd:
    """Callers that go on until `leave`: long streams, new connections, and kept ones."""

    def __init__(self, port: int, load: Load) -> None:
        self.seen = Seen()
        self.live = 0
        self._port = port
        self._load = load
        self._over = asyncio.Event()
        self._tasks = [asyncio.create_task(self._fresh())]
        self._tasks += [asyncio.create_task(self._streams(n)) for n in range(load.streams)]
        self._tasks += [asyncio.create_task(self._kept()) for _ in range(5)]

    async def _streams(self, number: int) -> None:
        # Spread out, so that at any time some have just begun and some are about to end.
        await asyncio.sleep(self._load.seconds * number / self._load.streams)
        self.live += 1
        while not self._over.is_set():
            await self.seen.ask(self._port, (CHAT, MESSAGES)[number % 2], "long")
        self.live -= 1

    async def _fresh(self) -> None:
        asked: set[asyncio.Task[None]] = set()
        while not self._over.is_set():
            task = asyncio.create_task(self.seen.ask(self._port, CHAT, "fresh"))
            asked.add(task)
            task.add_done_callback(asked.discard)
            await asyncio.sleep(1 / self._load.rate)
        await asyncio.gather(*asked)

    async def _kept(self) -> None:
        async with await Client.open(self._port, patience=60) as client:
            while not self._over.is_set():
                await self.seen.ask(self._port, CHAT, "kept", client=client)
                await asyncio.sleep(0.1)

    async def leave(self) -> None:
        """Ask for nothing new, and read what is under way to its end."""
        self._over.set()
        await asyncio.gather(*self._tasks)


def serve(folder: Path, port: int, engine: Engine) -> Command:
    file = folder / f"{port}.yaml"
    text = configured(engine.url, timeouts=TIMEOUTS)
    file.write_text(text.replace("listen: 127.0.0.1:0", f"listen: 127.0.0.1:{port}", 1))
    return Command("serve", "--config", str(file))


async def started(stack: AsyncExitStack, command: Command) -> Command:
    await stack.enter_async_context(command)
    await command.listening()
    return command


async def ended(command: Command) -> None:
    """End it as an operator does; it serves to the last word."""
    before = served(command)
    command.signal(signal.SIGTERM)
    assert await command.ended(180) == 0
    assert served(command) > before, "streams were live when it was told to end"
    assert b"Traceback" not in command.err


def served(command: Command) -> int:
    return command.out.count(b'"outcome":"ok"')


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(Load(60, 8, 50), marks=pytest.mark.slow, id="short"),
        pytest.param(Load(200, 30, 100), marks=pytest.mark.soak, id="long"),
    ],
)
async def test_a_rolling_restart_breaks_no_stream_and_refuses_nobody(
    tmp_path: Path, load: Load
) -> None:
    def answer(got: Received) -> Iterable[Step] | None:
        if got.method != "POST":
            return None
        whole = events(got.path)
        if b"long" not in got.body:
            return stream(whole)
        return stream(whole, pause=load.seconds / len(whole))

    ports = [free_port(), free_port()]
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(answer))
        old = [await started(stack, serve(tmp_path, port, engine)) for port in ports]
        proxy = await stack.enter_async_context(Haproxy(tmp_path, ports))
        await proxy.listening()
        crowd = Crowd(proxy.port, load)
        await until(lambda: crowd.live == load.streams, 120)
        for command, port in zip(old, ports, strict=True):
            await ended(command)
            new = await started(stack, serve(tmp_path, port, engine))
            await until(lambda c=new: served(c) > 10, 30)  # type: ignore[misc]
        await crowd.leave()
    print(f"restarted both: {dict(crowd.seen.whole)} whole answers, {len(crowd.seen.odd)} others")
    assert not crowd.seen.odd, "\n".join(crowd.seen.odd[:10])
    assert crowd.seen.whole["long"] >= 2 * load.streams
    assert crowd.seen.whole["kept"] > 0

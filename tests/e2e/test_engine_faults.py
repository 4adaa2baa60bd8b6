"""Two real engines, one of which fails: nothing that was not promised fails, nothing ends falsely.

The tests come in an order: each leaves both engines in service, the last ones by a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from anyio.from_thread import BlockingPortal

from backends import install, launch
from tests.e2e.engines import RealEngine
from tests.fakes.client import Client
from tests.fakes.gateway import HEADERS, Command, configured, until
from tests.faults.asking import CHAT, MESSAGES, Heard, body, heard

#: With the other tests' engines at work beside these two, a small machine is late in everything.
pytestmark = [pytest.mark.e2e, pytest.mark.soak]

BOTH = (CHAT, MESSAGES)
TIMEOUTS = "{first_event: 60s, stall: 5s, heartbeat: 1s, lame_duck: 0, drain: 5s}"
#: Tokens of an answer that is under way for some seconds, and of one that is soon over.
LONG, SHORT = 2_000, 4
STREAMS = 10


@dataclass(frozen=True)
class Pair:
    """Two engines of one model. Their processes are found anew each time: they may be others."""

    engines: tuple[RealEngine, RealEngine]

    @property
    def victim(self) -> RealEngine:
        return self.engines[0]

    def tree(self, engine: RealEngine) -> list[int]:
        """The API server of an engine, and below it what computes."""
        (server,) = (pid for pid in _below(os.getpid()) if _serves(pid, engine.port))
        return [server, *_below(server)]

    def core(self, engine: RealEngine) -> int:
        (core,) = (pid for pid in self.tree(engine) if "EngineCore" in _name(pid))
        return core


def _below(parent: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_below(child)]
    return found


def _serves(pid: int, port: int) -> bool:
    with contextlib.suppress(OSError):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        guard = str(launch.GUARD).encode() in argv
        return b"%d" % port in argv and b"--port" in argv and not guard
    return False


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/comm").read_text()
    return ""


@pytest.fixture(scope="module")
def pair(portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two engines of the random model, which are started again when they end."""
    python = install.found(os.environ)
    if python is None:
        pytest.fail("no engine is installed; `make engine` prepares it", pytrace=False)
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path_factory.mktemp("pair"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        (first,) = launch.choose(None, "none", python, lambda line: None, environ=environ)
    port = next(launch.free_ports(1))
    argv = tuple(str(port) if word == str(first.port) else word for word in first.argv)
    second = replace(first, name="another", port=port, argv=argv)
    launched = launch.Launched([first, second], lambda progress: None, environ=environ)
    with portal.wrap_async_context_manager(launched):
        yield Pair((RealEngine(first.port, first.name), RealEngine(port, first.name)))


class Gateway:
    """The installed command before both engines."""

    def __init__(self, command: Command, port: int) -> None:
        self.command = command
        self.port = port

    async def ask(self, path: str, tokens: int, **more: Any) -> Heard:
        asked = body(path, max_tokens=tokens, ignore_eos=True, **more)
        async with await Client.open(self.port, patience=90) as client:
            await client.post(path, asked, HEADERS)
            return await heard(client, path)

    def begin(self, count: int, tokens: int) -> list[tuple[str, asyncio.Task[Heard]]]:
        """So many streams at once, in both dialects, over both engines."""
        paths = [BOTH[n // 2 % 2] for n in range(count)]
        return [(path, asyncio.create_task(self.ask(path, tokens))) for path in paths]

    async def line(self, answer: Heard) -> dict[str, Any]:
        named = answer.request_id.encode()
        await until(lambda: named in self.command.out[: self.command.out.rfind(b"\n")])
        (line,) = (line for line in self.command.out.splitlines() if named in line)
        told: dict[str, Any] = orjson.loads(line)
        return told

    async def until_back(self, engine: RealEngine, timeout: float) -> float:
        """Until short requests go there again; none may fail meanwhile. How long that took."""
        since = time.monotonic()
        async with asyncio.timeout(timeout):
            while True:
                for path in BOTH:
                    answer = await self.ask(path, SHORT)
                    assert (answer.status, answer.finished) == (200, True), answer.plain
                    await asyncio.sleep(0.5)
                    if (await self.line(answer))["replica"] == engine.url:
                        return time.monotonic() - since


@pytest.fixture
async def gateway(pair: Pair, tmp_path: Path) -> AsyncIterator[Gateway]:
    file = tmp_path / "fairgate.yaml"
    model = f"upstream_model: {pair.victim.model}, policy: round_robin"
    file.write_text(
        configured(
            *(e.url for e in pair.engines),
            model=model,
            timeouts=TIMEOUTS,
            more="secret: sixteen-letters-",
        )
    )
    async with Command("serve", "--config", str(file)) as command:
        yield Gateway(command, await command.listening())
        command.signal(signal.SIGTERM)
        assert await command.ended(20) == 0
        assert b"Traceback" not in command.err


async def in_mid_stream(gateway: Gateway, pair: Pair) -> list[tuple[str, asyncio.Task[Heard]]]:
    """Streams under way on both engines. The first request after a start is slow: it is over."""
    so_far = {}
    for engine in pair.engines:
        await engine.ask(CHAT, body(CHAT, stream=False, max_tokens=SHORT))
        so_far[engine] = await engine.generated()
    begun = gateway.begin(STREAMS, LONG)

    async def flows(engine: RealEngine) -> None:
        while await engine.generated() < so_far[engine] + 2 * STREAMS:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(asyncio.gather(*map(flows, pair.engines)), 60)
    assert await pair.victim.running() >= 2
    return begun


def errors(answer: Heard) -> list[int]:
    """Which of its events are errors. A random model also says `error` and the like."""
    read = [orjson.loads(e.partition(b"data: ")[2]) for e in answer.events if b"data: {" in e]
    beats = len(answer.events) - len(read)
    return [beats + at for at, event in enumerate(read) if "error" in event]


async def judge_committed(
    gateway: Gateway, pair: Pair, begun: Sequence[tuple[str, asyncio.Task[Heard]]]
) -> None:
    """Whole on the engine that lives, and an error frame on the other one; nothing else."""
    told = {engine.url: 0 for engine in pair.engines}
    for _, task in begun:
        answer = await task
        assert answer.status == 200
        line = await gateway.line(answer)
        if line["outcome"] == "ok":
            assert answer.finished
            assert line["replica"] != pair.victim.url
        else:
            assert errors(answer) == [len(answer.events) - 1], answer.events[-3:]
            assert line["outcome"] in ("upstream_failed", "timed_out")
            assert line["attempts"] == 1
            told[line["replica"]] += 1
    assert told[pair.victim.url] >= 2
    assert not told[pair.engines[1].url]


async def judge_new(
    gateway: Gateway, begun: Sequence[tuple[str, asyncio.Task[Heard]]]
) -> list[dict[str, Any]]:
    """All of them whole, whatever it took; their log lines."""
    lines = []
    for _, task in begun:
        answer = await task
        line = await gateway.line(answer)
        if not answer.finished:
            told = answer.plain or answer.events[-2:]
            pytest.fail(f"{line}\n{told}\n{gateway.command.err.decode()}", pytrace=False)
        lines.append(line)
    return lines


async def held_up(gateway: Gateway, pair: Pair, victims: Sequence[int]) -> None:
    """The victim's processes are stopped under load, and go on when all was served without it."""
    begun = await in_mid_stream(gateway, pair)
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    try:
        since = time.monotonic()
        lines = await judge_new(gateway, gateway.begin(8, SHORT))
        print(f"moved after {time.monotonic() - since:.1f} s")
        assert {line["replica"] for line in lines} == {pair.engines[1].url}
        assert any(line["attempts"] == 2 for line in lines), "none had to wait there"
        await judge_committed(gateway, pair, begun)
        since = time.monotonic()
        lines = await judge_new(gateway, gateway.begin(8, SHORT))
        assert [(line["replica"], line["attempts"]) for line in lines] == [
            (pair.engines[1].url, 1)
        ] * 8, "a request was sent to the engine that is known to stand still"
        assert time.monotonic() - since < 10
    finally:
        for pid in victims:
            os.kill(pid, signal.SIGCONT)
    print(f"back after {await gateway.until_back(pair.victim, 60):.1f} s")


async def test_a_deadlocked_engine_is_left_although_its_server_answers(
    gateway: Gateway, pair: Pair
) -> None:
    await held_up(gateway, pair, [pair.core(pair.victim)])


async def test_an_engine_that_hangs_is_left(gateway: Gateway, pair: Pair) -> None:
    await held_up(gateway, pair, pair.tree(pair.victim))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_an_engine_that_ends_costs_only_what_it_had_begun_to_answer(
    gateway: Gateway, pair: Pair, number: signal.Signals
) -> None:
    begun = await in_mid_stream(gateway, pair)
    waiting = gateway.begin(4, SHORT)
    tree = pair.tree(pair.victim)
    for pid in tree[:1] if number is signal.SIGTERM else tree:
        os.kill(pid, number)
    for _ in range(10):
        await judge_new(gateway, gateway.begin(4, SHORT))
    await judge_new(gateway, waiting)
    await judge_committed(gateway, pair, begun)
    print(f"back after {await gateway.until_back(pair.victim, 240):.1f} s")

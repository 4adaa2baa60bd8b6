"""A caller that leaves frees its engine at once, in every state and however it leaves."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from itertools import count, product
from typing import Literal

import pytest

from tests.fakes.client import Client, head
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving, until
from tests.fakes.script import JSON, Chunk, Fin, Hang, Head, Received, Send, Sleep, Step, stream
from tests.faults.asking import CHAT, MESSAGES, PATHS, body, events, nothing_left

pytestmark = pytest.mark.usefixtures("no_traceback")

#: What is asked of it: 250 ms. What a busy machine may take and the test still pass: a second.
DEADLINE = 1.0

State = Literal["unanswered", "head", "half", "quiet", "flowing"]
How = Literal["fin", "rst", "half-close"]
STATES: tuple[State, ...] = ("unanswered", "head", "half", "quiet", "flowing")
HOWS: tuple[How, ...] = ("fin", "rst", "half-close")


def leave(client: Client, how: How) -> None:
    match how:
        case "fin":
            client.close()
        case "rst":
            client.rst()
        case "half-close":
            client.fin()


@dataclass(frozen=True)
class Leaving:
    """A caller that leaves: of which request, in which state of its answer, and how."""

    path: str
    state: State
    how: How
    stream: bool = True
    pipelined: bool = False

    def steps(self) -> Iterable[Step]:
        """What the engine does until the state is reached, and after it."""
        if self.state == "unanswered":
            return [Hang()]
        if not self.stream:
            return [Head(200, [JSON, ("content-length", "999")]), Send(b'{"id":'), Hang()]
        whole = events(self.path)
        opening = stream([], end=False)
        match self.state:
            case "head":
                return [*opening, Hang()]
            case "half":
                return [*opening, Chunk(whole[0][:-1]), Hang()]
            case "quiet":
                return [*opening, Chunk(whole[0]), Hang()]
        return self._for_ever(opening, whole)

    def _for_ever(self, opening: list[Step], whole: list[bytes]) -> Iterable[Step]:
        yield from (*opening, Chunk(whole[0]))
        for _ in count():
            yield from (Sleep(0.005), Chunk(whole[2]))

    async def play(self, gateway: Serving, engine: Engine, mark: str) -> float:
        """Be that caller; how many seconds later the engine saw the end of its own connection."""
        loop = asyncio.get_running_loop()
        client = await Client.open(gateway.port)
        marked = {"system" if self.path == MESSAGES else "user": mark}
        asked = body(self.path, stream=self.stream, **marked)
        await client.post(self.path, asked, HEADERS)
        await engine.until(lambda: any(mark.encode() in r.body for r in engine.requests))
        if self.stream and self.state in ("quiet", "flowing"):
            await client.read_head("POST")
            await anext(client.read_events())
        if self.pipelined:
            await client.post(self.path, asked, HEADERS)
        left = loop.time()
        leave(client, self.how)
        await engine.until(lambda: any(mark.encode() in a.request.body for a in engine.aborts))
        took = loop.time() - left
        client.close()
        return took


async def played(leaving: Iterable[Leaving]) -> float:
    """Play all of them at once; the longest that an engine was kept."""
    cases = {f"mark-{number:03}": case for number, case in enumerate(leaving)}

    def answer(request: Received) -> Iterable[Step] | None:
        if request.method != "POST":
            return None
        sent = request.json()
        return cases[sent["system" if request.path == MESSAGES else "user"]].steps()

    async with Engine(answer) as engine, serving(configured(engine.url)) as gateway:
        async with nothing_left(gateway, engine):
            plays = (case.play(gateway, engine, mark) for mark, case in cases.items())
            took = await asyncio.gather(*plays)
        lines = await gateway.logged(len(cases))
        assert len(lines) == len(cases)
        assert {line["outcome"] for line in lines} == {"client_gone"}
        assert {line["status"] for line in lines} <= {200, 499}
        assert len([r for r in engine.requests if r.method == "POST"]) == len(cases)
    return max(took)


@pytest.mark.parametrize("state", STATES)
async def test_a_caller_of_a_stream_that_leaves_frees_the_engine(state: State) -> None:
    cases = [Leaving(path, state, how) for path, how in product(PATHS, HOWS)]
    assert await played(cases) < DEADLINE


@pytest.mark.parametrize("state", ["unanswered", "half"])
async def test_a_caller_of_a_plain_answer_that_leaves_frees_the_engine(state: State) -> None:
    cases = [Leaving(path, state, how, stream=False) for path, how in product(PATHS, HOWS)]
    assert await played(cases) < DEADLINE


async def test_a_request_sent_ahead_does_not_hide_that_its_caller_left() -> None:
    cases = [Leaving(CHAT, state, how, pipelined=True) for state, how in product(STATES, HOWS)]
    assert await played(cases) < DEADLINE


async def test_two_hundred_that_leave_at_once_free_every_engine() -> None:
    dice = random.Random(11)
    kinds = [
        Leaving(path, state, how, streamed, pipelined)
        for path, state, how, streamed, pipelined in product(
            PATHS, STATES, HOWS, (True, False), (True, False)
        )
        if streamed or state in ("unanswered", "half")
    ]
    worst = await played([dice.choice(kinds) for _ in range(200)])
    print(f"200 callers left at once: the last engine was free after {worst * 1000:.0f} ms")
    assert worst < DEADLINE


@pytest.fixture
async def deaf() -> AsyncIterator[str]:
    """The address of a listener that takes no connection any more: connecting to it hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            waiting.append(sock)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for sock in waiting:
            sock.close()


async def test_leaving_while_the_engine_is_connected_to_gives_it_up(deaf: str) -> None:
    timeouts = "{connect: 1s, lame_duck: 0}"
    async with serving(configured(deaf, timeouts=timeouts)) as gateway:
        for turn, how in enumerate(HOWS):
            await until(lambda: gateway.upstream_connections == 0)  # discovery tries as well
            client = await Client.open(gateway.port)
            await client.post(CHAT, body(CHAT), HEADERS)
            await until(lambda: gateway.in_flight > 0)
            leave(client, how)
            await gateway.until_quiet(DEADLINE)
            line = (await gateway.logged(turn + 1))[turn]
            assert line["outcome"] == "client_gone"
            client.close()
        await until(lambda: gateway.upstream_connections == 0)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("sent", [0, 10])
async def test_leaving_while_the_body_is_sent_reaches_no_engine(how: How, sent: int) -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        async with nothing_left(gateway, engine):
            client = await Client.open(gateway.port)
            declared = [*HEADERS, ("content-length", "1000")]
            await client.send(head("POST", CHAT, declared) + b"{" * sent)
            await until(lambda: gateway.live == 1)
            leave(client, how)
            await gateway.until_quiet(DEADLINE)
            (line,) = await gateway.logged(1)
            assert line["outcome"] == "client_gone"
            client.close()
        assert not [r for r in engine.requests if r.method == "POST"]


async def test_leaving_between_two_replicas_ends_the_second_try() -> None:
    async with Engine([Fin()]) as bad, Engine([Hang()]) as good:
        text = configured(bad.url, good.url, model="policy: round_robin")
        async with serving(text) as gateway, nothing_left(gateway, bad, good):
            client = await Client.open(gateway.port)
            await client.post(CHAT, body(CHAT), HEADERS)
            await good.until(lambda: any(r.method == "POST" for r in good.requests))
            client.rst()
            await good.until(lambda: bool(good.aborts), DEADLINE)
            (line,) = await gateway.logged(1)
            assert (line["outcome"], line["attempts"]) == ("client_gone", 2)

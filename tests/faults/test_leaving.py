"""A caller that leaves frees its engine at once, in every state and however it leaves.

Each state by itself is a cell of the fault matrix; here is what else can be the case.
"""

from __future__ import annotations

import random
from itertools import product

import pytest

from tests.fakes.client import Client, head
from tests.fakes.deaf import deaf
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving, until
from tests.fakes.script import Fin, Hang
from tests.faults.asking import CHAT, PATHS, body, nothing_left
from tests.faults.leaving import DEADLINE, HOWS, STATES, How, Leaving, State, leave, played

pytestmark = pytest.mark.usefixtures("no_traceback")


async def test_a_request_sent_ahead_does_not_hide_that_its_caller_left() -> None:
    cases = [Leaving(CHAT, state, how, pipelined=True) for state, how in product(STATES, HOWS)]
    assert (await played(cases))[-1] < DEADLINE


async def test_two_hundred_that_leave_at_once_free_every_engine() -> None:
    dice = random.Random(11)
    kinds = [
        Leaving(path, state, how, streamed, pipelined)
        for path, state, how, streamed, pipelined in product(
            PATHS, STATES, HOWS, (True, False), (True, False)
        )
        if streamed or state in ("unanswered", "half")
    ]
    worst = (await played([dice.choice(kinds) for _ in range(200)]))[-1]
    print(f"200 callers left at once: the last engine was free after {worst * 1000:.0f} ms")
    assert worst < DEADLINE


@pytest.mark.soak
@pytest.mark.parametrize(
    ("state", "streamed"),
    [*((state, True) for state in STATES), ("unanswered", False), ("half", False)],
)
async def test_a_thousand_that_leave_free_their_engines_within_250_ms(
    state: State, streamed: bool
) -> None:
    cases = [
        Leaving(PATHS[n % 3], state, HOWS[n % 2], streamed) for n in range(1_000)
    ]  # by FIN and by RST
    took = await played(cases, at_once=10)
    print(f"{state}: p50 {took[500] * 1000:.0f} ms, p99 {took[990] * 1000:.0f} ms")
    assert took[990] < 0.25


async def test_leaving_while_the_engine_is_connected_to_gives_it_up() -> None:
    timeouts = "{connect: 1s, lame_duck: 0}"
    with deaf() as port:
        engine = f"http://127.0.0.1:{port}"
        async with serving(configured(engine, timeouts=timeouts)) as gateway:
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

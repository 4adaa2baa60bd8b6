"""In which turn of the event loop a request takes which of its steps."""

import asyncio
import json
import time
from typing import Any

import pytest

from gateway.eager import Eager
from gateway.endpoints.chat import Chat
from gateway.exchange import Exchange
from gateway.terms import Ask, Head
from tests.fakes.admission import Counting
from tests.fakes.caller import FakeCaller
from tests.fakes.gateway import HEADERS, Serving, until
from tests.fakes.script import Hang
from tests.gateway.test_exchange import CHAT, PLAIN, counted, post, posts, told


class Noting(Chat):
    """Notes at each request it reads how many were asked to be admitted by then."""

    def __init__(self, admission: Counting) -> None:
        self.noted: list[int] = []
        self._admission = admission

    def read(self, body: bytes) -> Ask:
        self.noted.append(len(self._admission.asked))
        return super().read(body)


def begun(gateway: Serving, endpoint: Chat, *, at_once: bool = False) -> Exchange:
    """A request that came whole, and is served from now or the next turn of the loop on."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(PLAIN).encode(), "more_body": False}

    fields = {name.encode(): value.encode() for name, value in HEADERS}
    caller, served = FakeCaller(), gateway.worker.composition.gateway
    caller.at_once = at_once
    exchange = Exchange(served, endpoint, Head("POST", CHAT, fields), caller, time.monotonic())
    if not at_once:
        caller.task = asyncio.create_task(exchange.run(receive))
        return exchange
    eager = Eager(exchange.run(receive))
    caller.task = asyncio.create_task(eager)
    eager.begin(caller.task, asyncio.get_running_loop())
    return exchange


async def test_requests_of_one_turn_are_all_read_before_the_first_is_admitted() -> None:
    async with counted() as (gateway, _, admission):
        endpoint = Noting(admission)
        for _ in range(3):
            begun(gateway, endpoint)
        await gateway.logged(3)
        assert (endpoint.noted, len(admission.asked)) == ([0, 0, 0], 3)


async def test_one_that_began_at_once_waits_for_nobody_else_to_be_read() -> None:
    async with counted() as (gateway, _, admission):
        endpoint = Noting(admission)
        begun(gateway, endpoint, at_once=True)
        assert (endpoint.noted, len(admission.asked)) == ([0], 1)
        begun(gateway, endpoint)
        assert await told(gateway, admission, 2) == (200, "ok")


@pytest.mark.parametrize("connected", [False, True])
async def test_a_caller_who_leaves_a_request_just_begun_at_once_frees_everything(
    connected: bool,
) -> None:
    async with counted() as (gateway, engine, admission):
        if connected:
            await post(gateway, PLAIN)
        engine.script = [Hang()]
        begun(gateway, Noting(admission), at_once=True).gone()
        assert len(admission.asked) == connected + 1
        assert await told(gateway, admission, connected + 1) == (499, "client_gone")
        await until(lambda: gateway.upstream_connections == 0)


async def test_a_caller_who_leaves_between_reading_and_admission_never_had_a_permit() -> None:
    async with counted() as (gateway, engine, admission):
        endpoint = Noting(admission)
        exchange = begun(gateway, endpoint)
        await asyncio.sleep(0)
        assert (endpoint.noted, gateway.live) == ([0], 1)
        assert gateway.worker.composition.gateway.bodies.held > 0
        exchange.gone()
        assert await told(gateway, admission) == (499, "client_gone")
        assert (admission.asked, posts(engine)) == ([], 0)

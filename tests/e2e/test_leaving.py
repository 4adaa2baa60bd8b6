"""A caller who leaves stops the real engine at once, long before its answer would end.

On an idle machine it stands still within a fifth of a second (the tests print how long it took).
The deadline is wider, since the engine computes on the same cores as the tests.
"""

import asyncio
import json
from typing import Any

import pytest

from tests.e2e.conftest import CHAT, RunningGateway
from tests.e2e.engines import RealEngine
from tests.fakes.client import Client, request

pytestmark = pytest.mark.e2e

#: Seconds for which the engine would go on if nobody told it, and within which it must stop.
LONG = 20.0
SOON = 5.0
PROMPT = [{"role": "user", "content": "Tell me a long story."}]
TALK, MESSAGE, COMPLETE = "/v1/chat/completions", "/v1/messages", "/v1/completions"


@pytest.fixture
async def tokens(chat_engine: RealEngine) -> int:
    """So many that the idle engine generates for `LONG` seconds, and as long again to be sure."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await chat_engine.ask(TALK, _long(200))
    rate = answer.json()["usage"]["completion_tokens"] / (loop.time() - began)
    return int(rate * LONG * 2)


def _long(tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": CHAT, "messages": PROMPT, "ignore_eos": True, "max_tokens": tokens, **more}


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "plain"])
@pytest.mark.parametrize("callers", [1, 4])
async def test_the_engine_stops_when_its_callers_leave(
    callers: int,
    stream: bool,
    how: str,
    gateway: RunningGateway,
    chat_engine: RealEngine,
    tokens: int,
) -> None:
    await chat_engine.until_idle(LONG)
    bodies = [(TALK, _long(tokens, stream=stream))] * callers
    await _leave(gateway, chat_engine, bodies, how)


async def test_it_stops_on_every_path_that_generates(
    gateway: RunningGateway, chat_engine: RealEngine, tokens: int
) -> None:
    await chat_engine.until_idle(LONG)
    completion = {**_long(tokens, stream=True), "prompt": "Once upon"}
    del completion["messages"]
    # It knows no `ignore_eos`; its likeliest tokens are not the end.
    message = {
        "model": CHAT,
        "messages": PROMPT,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    await _leave(gateway, chat_engine, [(COMPLETE, completion), (MESSAGE, message)], "fin")


async def _leave(
    gateway: RunningGateway,
    engine: RealEngine,
    bodies: list[tuple[str, dict[str, Any]]],
    how: str,
) -> None:
    """Start these, see all of them run, leave all at once, and see the engine stand still."""
    loop = asyncio.get_running_loop()
    clients = [await Client.open(gateway.port) for _ in bodies]
    began = loop.time()
    for client, (path, body) in zip(clients, bodies, strict=True):
        await client.post(path, body, gateway.headers[:1])
    try:
        await engine.until_running(len(bodies))
    except TimeoutError:
        for client in clients:
            client.rst()
        runs = f"{await engine.running()} of {len(bodies)} run"
        told = f"{gateway.log()[-8:]}\n{gateway.command.err.decode()}"
        pytest.fail(f"{runs} after {loop.time() - began:.0f} s; the gateway: {told}", pytrace=False)
    runs_since = loop.time()
    if all(body.get("stream") for _, body in bodies):
        for client in clients:
            status, _ = await client.read_head()
            assert status == 200
            await client.read(1)
    left = loop.time()
    for client in clients:
        client.rst() if how == "rst" else client.close()
    await engine.until_idle(SOON)
    print(f"{len(bodies)} left ({how}): idle after {loop.time() - left:.2f} s")
    generated = await engine.generated()
    await asyncio.sleep(1.0)
    assert await engine.generated() == generated
    assert loop.time() - runs_since < LONG / 2, "the engine may have been done by itself"


async def test_the_log_says_that_the_client_is_gone(
    gateway: RunningGateway, chat_engine: RealEngine, tokens: int
) -> None:
    await chat_engine.until_idle(LONG)
    before = len(gateway.log())
    await _leave(gateway, chat_engine, [(TALK, _long(tokens, stream=True))], "fin")
    line = (await gateway.logged(before + 1))[-1]
    assert (line["outcome"], line["endpoint"], line["model"]) == ("client_gone", TALK, CHAT)
    assert line["completion_tokens"] > 0


async def test_the_next_caller_is_served_at_once(
    gateway: RunningGateway, chat_engine: RealEngine, tokens: int
) -> None:
    await chat_engine.until_idle(LONG)
    await _leave(gateway, chat_engine, [(TALK, _long(tokens, stream=True))] * 4, "rst")
    body = json.dumps(_long(3)).encode()
    answer = await request(gateway.port, "POST", TALK, gateway.headers, body)
    assert answer.json()["usage"]["completion_tokens"] == 3
